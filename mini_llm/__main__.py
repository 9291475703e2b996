"""The command `mini-llm`, or `python -m mini_llm`: the stages by name, and commands that read their runs."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from mini_llm.engine.all_runs.commands import register as register_runs
from mini_llm.engine.cli import EXIT_CODES, Debug, Version, command_app, end_process, program, run_app
from mini_llm.engine.tracking.commands import register as register_sync
from mini_llm.stages import STAGES, load, module_name

ME = program("mini_llm")
HELP = f"""Train a tokenizer, pretrain, fine-tune and use small language models.

Stages: tokenizer, pretrain, finetune, generate, scoring, and export to GGUF; each has its own --help.

[bold]Examples[/bold]

  {ME} pretrain --data my.txt --budget 5m   [dim]# a GPT on your text[/dim]
  {ME} generate runs/gpt 'def '             [dim]# text from it[/dim]
  {ME} scoring runs/gpt held-out.txt        [dim]# its loss[/dim]
  {ME} report                               [dim]# a page per run[/dim]
  {ME} report runs/gpt runs/mlm             [dim]# both on one page[/dim]
  {ME} runs                                 [dim]# all runs[/dim]
  {ME} watch gpt                            [dim]# live curves[/dim]
  {ME} doctor                               [dim]# this machine[/dim]
  {ME} summary runs/gpt runs/mlm            [dim]# models and scores[/dim]
  {ME} replay runs/gpt 120                  [dim]# step 120 again[/dim]
  {ME} sweep configs/sweeps/pretrain.yaml   [dim]# a search in 30m[/dim]
  {ME} sync                                 [dim]# offline runs to W&B[/dim]
  {ME} settings                             [dim]# every setting[/dim]

{EXIT_CODES}"""
REPORT_HELP = f"""Write RUN_DIR/report.html, one self-contained file, and an index.html beside the runs.

Two or more RUN_DIRs are also compared on one page, compare.html beside the first of them: curves, scores, samples.

[bold]Examples[/bold]

  {ME} report
  {ME} report runs/gpt
  {ME} report runs/gpt runs/mlm

{EXIT_CODES}"""
SUMMARY_HELP = f"""Print the model, scores beside baselines, a sample of text and next steps of each run.

[bold]Examples[/bold]

  {ME} summary runs/gpt
  {ME} summary runs/mlm runs/mlm-classifier

{EXIT_CODES}"""
REPLAY_HELP = f"""Recompute a step from the checkpoint before it: loss, gradient norms, and the documents of its batch.

The result has the same bits with as many processes as the run had. The run is not changed.

[bold]Examples[/bold]

  {ME} replay runs/gpt 120
  {ME} replay runs/gpt 120 --dump batch.safetensors
  torchrun --nproc-per-node 2 -m mini_llm replay runs/gpt 120

{EXIT_CODES}"""
SWEEP_HELP = f"""Search settings offline: the trials of a W&B sweep file (grid, random, successive halving) in sequence.

The budget is divided among the trials, which are runs of their own and are compared on validation. The table and the \
page are in runs/NAME, where NAME is the `name` in FILE, by default its stem and -sweep. The same command again \
resumes, also after a kill.

[bold]Examples[/bold]

  {ME} sweep configs/sweeps/pretrain.yaml --budget 30m
  {ME} sweep configs/sweeps/pretrain.yaml --budget 2h --trials 27

{EXIT_CODES}"""
SETTINGS_HELP = f"""Print every setting of every stage with its default and meaning, as Markdown (docs/settings.md).

[bold]Examples[/bold]

  {ME} settings
  {ME} settings > settings.md

{EXIT_CODES}"""

app = command_app(HELP)
register_runs(app)
register_sync(app)
RunDirectories = Annotated[list[Path] | None, typer.Argument(metavar="RUN_DIR", help="Run directories.")]


@app.callback(help=HELP)
def options(version: Version = False) -> None:
    pass


@app.command(help=REPORT_HELP, short_help="Write a page per run, and one that compares several.")
def report(
    paths: RunDirectories = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs, when no RUN_DIR is given.")] = Path("runs"),
    debug: Debug = False,
) -> None:
    from mini_llm.engine.report.compare.page import write_comparison
    from mini_llm.engine.report.page import COMPARISON, write_index, write_report
    from mini_llm.engine.report.record import find_runs

    chosen = paths or find_runs(runs)
    failed: list[Exception] = []
    for path in chosen:
        try:
            print(write_report(path))
        except Exception as error:  # the reports of the other runs come first
            failed.append(error)
    if paths and len(paths) > 1 and not failed:
        print(write_comparison(paths, paths[0].parent / COMPARISON))
    for root in dict.fromkeys(path.resolve().parent for path in chosen):
        index = write_index(root)
        if index is not None:
            print(index.relative_to(Path.cwd()) if index.is_relative_to(Path.cwd()) else index)
    for error in failed[1:]:
        print(f"mini_llm: {error}", file=sys.stderr)
    if failed:
        raise failed[0]


@app.command(help=SUMMARY_HELP, short_help="Print model, scores, a sample of text and next steps of runs.")
def summary(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Run directories.")], debug: Debug = False
) -> None:
    from mini_llm.engine.report.summary import print_summary

    print_summary(paths)


@app.command(help=REPLAY_HELP, short_help="Recompute a step of a run.")
def replay(
    path: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")],
    step: Annotated[int, typer.Argument(metavar="STEP", min=1, help="Step number, as in metrics.jsonl.")],
    dump: Annotated[Path | None, typer.Option(help="safetensors file for the tensors of the batch.")] = None,
    debug: Debug = False,
) -> None:
    from mini_llm.engine.errors import ConfigError
    from mini_llm.engine.run.state import Environment, read_state

    environment = read_state(path / "environment.json", Environment)
    stage = environment.stage if environment else None
    if stage not in ("pretrain", "finetune"):
        raise ConfigError(f"{path}: not a pretraining or fine-tuning run (environment.json names no such stage)")
    load(stage, "run").replay(path, step, dump)


@app.command(help=SWEEP_HELP, short_help="Search settings offline with a W&B sweep file.")
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Sweep file of W&B, as configs/sweeps/pretrain.yaml.")],
    budget: Annotated[str, typer.Option(metavar="TIME", help="Wall time of the whole sweep: 10m, 4h.")] = "30m",
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Number of trials.", show_default="run_cap of the file, else 8 or the grid"),
    ] = None,
    debug: Debug = False,
) -> None:
    from mini_llm.engine.cli import parse_duration
    from mini_llm.engine.sweep.file import read_sweep_file
    from mini_llm.engine.sweep.page import print_table, write_page
    from mini_llm.engine.sweep.trials import run_sweep

    found = run_sweep(read_sweep_file(file), file, parse_duration(budget), trials)
    print_table(found)
    print(write_page(found, Path("runs") / found.name))


@app.command(help=SETTINGS_HELP, short_help="Print every setting of every stage, as Markdown.")
def settings() -> None:
    print(all_settings(), end="")


def all_settings() -> str:
    """The text of docs/settings.md."""
    from mini_llm.engine.settings_page import settings_page
    from mini_llm.tokenization.config import TokenizerConfig

    return settings_page(
        {
            "tokenizer": TokenizerConfig,
            "pretrain": load("pretrain", "config").PretrainConfig,
            "finetune": load("finetune", "config").FinetuneConfig,
            "generate": load("generate", "config").GenerateConfig,
        }
    )


def main() -> None:
    """Run a stage when its name comes first, else one of the commands above."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if name == "generate":
            import_module(f"{module_name(name)}.__main__").main(sys.argv[2:])
        elif name in STAGES or name == "export":
            module, shown = ("mini_llm.export", "mini_llm export") if name == "export" else (module_name(name), name)
            run_app(import_module(f"{module}.__main__").app, shown, sys.argv[2:])
        else:
            run_app(app, "mini_llm")
    except SystemExit as end:
        end_process(end.code)


if __name__ == "__main__":
    main()
