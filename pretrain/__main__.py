"""The command line of stage 2: `python -m pretrain` trains, `python -m pretrain plan` shows what a run would need."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mini_llm.engine.cli import (
    EXIT_CODES,
    Debug,
    TrainByDefault,
    Version,
    command_app,
    program,
    run_app,
    settings_argument,
    settings_command,
)

from .ladder.commands import register as register_ladder
from .preset_files import preset_names

ME = program("pretrain")
HELP = f"""Pretrain a decoder, an encoder or an encoder-decoder on your text, within a time budget.

Without arguments: a GPT on the standard library of the running Python, for three minutes. A tokenizer is trained \
first when none is given. The run is written to runs/gpt (runs/mlm), with -NAME for a corpus called NAME. The same \
command again resumes it; a finished run is left as it is.

Models: gpt (qwen3), mlm (modernbert), transformer, gpt2, bert, llama, qwen3, modernbert, t5, or a YAML file like \
those in configs/model/. Decoders learn next tokens, encoders masked tokens (BERT also next sentences), \
encoder-decoders span corruption or pairs of texts.

[bold]Examples[/bold]

  {ME}
  {ME} --model mlm --budget 10m
  {ME} --data input.txt --budget 2m
  {ME} --data 'reviews/*.jsonl.gz' --run reviews optim.lr=2e-3
  {ME} --model t5 pairs.path=pairs.tsv pairs.source=english
  {ME} --model t5 --data reviews.jsonl.gz pairs.task=restore
  {ME} --init models/Qwen3-0.6B --data input.txt optim.lr=1e-5
  {ME} configs/pretrain/gpt.yaml max_steps=1000 budget=null
  {ME} plan configs/pretrain/gpt-124m.yaml --ranks 8 --zero 2
  {ME} ladder --budget 30m
  accelerate launch --config_file configs/accelerate/zero2.yaml -m pretrain

{EXIT_CODES}"""

PLAN_HELP = f"""Show what a run would be and need, before any work: parameters, FLOPs, memory of each process by part \
and ZeRO stage, disk, and the time it would take at the speed of a few real steps. Exits with an error if it does not \
fit.

[bold]Examples[/bold]

  {ME} plan
  {ME} plan --model mlm sizes.hidden_size=512 micro_batch_size=8
  {ME} plan configs/pretrain/gpt-124m.yaml --ranks 8 --zero 2 --memory 80GB --tokens 10B

{EXIT_CODES}"""


def config_class() -> Any:
    from .config import PretrainConfig

    return PretrainConfig


def _models(incomplete: str) -> list[str]:
    return [name for name in preset_names() if name.startswith(incomplete)]


Arguments = Annotated[list[str] | None, settings_argument(config_class)]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="gpt, mlm, another preset, or a YAML file.", autocompletion=_models),
]
Budget = Annotated[str | None, typer.Option(metavar="TIME", help="Wall time of training: 30s, 10m, 4h.")]

app = command_app(HELP, TrainByDefault)


@app.command(help=HELP, cls=settings_command(config_class))
def train(
    arguments: Arguments = None,
    model: Model = None,
    init: Annotated[
        str | None, typer.Option(metavar="DIR", help="Continue from this model directory or run, with its tokenizer.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="File, folder, glob or dataset org/name; repeat for several."),
    ] = None,
    budget: Budget = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run: runs/NAME.")] = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    flags = {"model": model, "init": init, "corpus.sources": data or None, "budget": budget, "run": run}
    config = read_settings(arguments or [], flags)

    from mini_llm.engine.run.inputs import named_by_data
    from mini_llm.engine.tracking.wandb_runs import run_of_its_own

    named = config.run is not None
    config = named_by_data(config, Path("runs"))
    config = run_of_its_own(config, config.run_name, named=named)

    from .plan_command import check_fits
    from .run import pretrain

    check_fits(config)
    pretrain(config)


@app.command(
    help=PLAN_HELP, cls=settings_command(config_class), short_help="Memory, disk and time of a run, before any work."
)
def plan(
    arguments: Arguments = None,
    model: Model = None,
    data: Annotated[list[str] | None, typer.Option(metavar="PATH", help="As in training.")] = None,
    budget: Budget = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Number of processes.", show_default="1")] = None,
    zero: Annotated[
        int | None, typer.Option(min=0, max=3, help="ZeRO stage.", show_default="runtime.zero_stage")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory per GPU (80GB), to plan for another machine.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="N", help="Corpus size (300M, 10B).", show_default="from the size of its files"),
    ] = None,
    debug: Debug = False,
) -> None:
    config = read_settings(arguments or [], {"model": model, "corpus.sources": data or None, "budget": budget})

    from .plan_command import parse_count, parse_size, show_plan

    show_plan(config, ranks, zero, parse_size(memory, "--memory"), parse_count(tokens, "--tokens"))


register_ladder(app)


def read_settings(arguments: list[str], flags: dict[str, object]) -> Any:
    """PretrainConfig from the YAML file, the flags, then key=value. Raises ConfigError."""
    from mini_llm.engine.config import flag_overrides, load_config, split_arguments

    path, overrides = split_arguments(arguments)
    return load_config(config_class(), path, [*flag_overrides(flags), *overrides])


if __name__ == "__main__":
    run_app(app, "pretrain")
