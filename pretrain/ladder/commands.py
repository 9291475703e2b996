"""The command `ladder` of `python -m pretrain`."""

from typing import Annotated, Any

import typer

from mini_llm.engine.cli import EXIT_CODES, Debug, program, settings_argument, settings_command

ME = program("pretrain")
LADDER_HELP = f"""Train a ladder of small sizes and token counts inside one budget, and fit the scaling law \
loss(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022) to their validation losses.

Prints the law with intervals, the compute-optimal sizes and the predicted loss of the next size; then trains that \
size and prints its measured loss beside the prediction. Runs, picture and page are in runs/NAME-ladder. Later runs on \
the same corpus choose their width by the law. The same command again resumes, also after a kill; finished runs are \
kept.

[bold]Examples[/bold]

  {ME} ladder --budget 30m
  {ME} ladder --model mlm --data input.txt --budget 1h
  {ME} ladder --budget 10m --widths 32,48,64,96 optim.lr=2e-3

{EXIT_CODES}"""


def config_class() -> Any:
    from ..config import PretrainConfig

    return PretrainConfig


def ladder(
    arguments: Annotated[list[str] | None, settings_argument(config_class)] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Wall time of the whole ladder (10m, 4h).")] = "30m",
    model: Annotated[str | None, typer.Option(metavar="NAME", help="gpt, mlm, a preset, or a YAML file.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="File, folder, glob or dataset org/name; repeat for several."),
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="The ladder is runs/NAME-ladder.")] = None,
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Widths, ascending; the last is held out (32,48,64,96,128).", show_default="by budget"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    from mini_llm.engine.config import flag_overrides, load_config, split_arguments

    path, overrides = split_arguments(arguments or [])
    flags = {"model": model, "corpus.sources": data or None, "budget": budget, "run": run}
    config = load_config(config_class(), path, [*flag_overrides(flags), *overrides])

    from .climb import climb

    climb(config, widths)


def register(app: typer.Typer) -> None:
    """Add the command to `python -m pretrain`."""
    app.command(
        "ladder",
        help=LADDER_HELP,
        short_help="Fit a scaling law to small runs and predict the next size.",
        cls=settings_command(config_class),
    )(ladder)
