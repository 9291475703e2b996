"""The command `mini-llm`, or `python -m mini_llm`: the stages by name, and what reads their runs."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from mini_llm.engine.cli import EXIT_CODES, command_app, run_app
from mini_llm.stages import INSTALLED, STAGES, module_name

PROGRAM = "mini-llm" if INSTALLED else "python -m mini_llm"

app = command_app(
    "Train a tokenizer, pretrain, fine-tune and use small language models.\n\n"
    "Stages: tokenizer, pretrain, finetune, generate, and export to GGUF; each has its own --help.\n\n"
    "Examples:\n\n"
    f"  {PROGRAM} pretrain --data my.txt --budget 5m   a GPT on your text\n\n"
    f"  {PROGRAM} generate runs/gpt 'def '             text from it\n\n"
    f"  {PROGRAM} report                               a page for every run under runs/\n\n"
    f"  {PROGRAM} summary runs/gpt runs/mlm            where the models lie, and their scores\n\n"
    f"  {PROGRAM} replay runs/gpt 120                  step 120 again, bit for bit, with its documents\n\n"
    f"{EXIT_CODES} --debug shows tracebacks."
)
Paths = Annotated[list[Path] | None, typer.Argument(metavar="RUN_DIR", help="run directories")]


@app.command()
def report(
    paths: Paths = None,
    runs: Annotated[Path, typer.Option(help="where the runs lie, when none is named")] = Path("runs"),
) -> None:
    """Write RUN_DIR/report.html, one file without links to the network, and an index.html beside the runs."""
    from mini_llm.engine.report.page import write_index, write_report
    from mini_llm.engine.report.record import find_runs

    chosen = paths or find_runs(runs)
    for path in chosen:
        print(write_report(path))
    for root in dict.fromkeys(path.resolve().parent for path in chosen):
        index = write_index(root)
        if index is not None:
            print(index.relative_to(Path.cwd()) if index.is_relative_to(Path.cwd()) else index)


@app.command()
def summary(paths: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="run directories")]) -> None:
    """Print where each model lies, scores beside baselines, a sample of text, and what to try next."""
    from mini_llm.engine.report.summary import print_summary

    print_summary(paths)


@app.command()
def replay(
    path: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="run directory")],
    step: Annotated[int, typer.Argument(min=1, help="the step, as metrics.jsonl counts it")],
    dump: Annotated[Path | None, typer.Option(help="safetensors file for the tensors of the batch")] = None,
) -> None:
    """Compute a step again, from the checkpoint before it: loss, gradient norms, and the documents of its batch.

    Start it as the run was started (python, torchrun): bit for bit it is with as many processes.
    """
    import os

    from mini_llm.engine.errors import ConfigError
    from mini_llm.engine.run.files import read_json

    stage = (read_json(path / "environment.json") or {}).get("stage")
    if stage not in STAGES:
        raise ConfigError(f"{path}: no run of a training stage, or one of an older release (environment.json)")
    command = [sys.executable, "-m", module_name(stage), "replay", str(path), str(step)]
    os.execv(sys.executable, [*command, *(["--dump", str(dump)] if dump else [])])


def main() -> None:
    """Run a stage when its name comes first; else one of the commands above."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in STAGES or name == "export":
        module = "mini_llm.export" if name == "export" else module_name(name)
        run_app(import_module(f"{module}.__main__").app, name, sys.argv[2:])
    else:
        run_app(app, "mini_llm")


if __name__ == "__main__":
    main()
