"""The command `sweep` of `python -m finetune`."""

from typing import Annotated, Any

import typer

from mini_llm.engine.cli import EXIT_CODES, Debug, program, settings_argument, settings_command

ME = program("finetune")
SWEEP_HELP = f"""Try a few settings and seeds inside one budget: every combination of the values with commas.

Trials are judged on validation alone; test data are not read. The setting with the best mean over its seeds wins, is \
trained again with its best seed as runs/MODEL-classifier-sweep (--run), and scored on the test data once. All trials \
and this run have the same time. The same command again resumes, also after a kill.

[bold]Examples[/bold]

  {ME} sweep --data reviews.csv optim.lr=1e-4,3e-4,1e-3 seed=1,2,3 --budget 30m
  {ME} sweep configs/finetune/gpt.yaml dropout=0,0.1,0.3 --budget 10m

{EXIT_CODES}"""


def config_class() -> Any:
    from ..config import FinetuneConfig

    return FinetuneConfig


Model = Annotated[
    str | None, typer.Option("--model", "--init", metavar="DIR", help="Pretrained run or directory: model=")
]
Data = Annotated[str | None, typer.Option(metavar="PATH", help="Labelled file, glob or dataset org/name: data.path=")]


def sweep(
    arguments: Annotated[
        list[str] | None, settings_argument(config_class, "[CONFIG.yaml] [KEY=VALUE[,VALUE]...]...")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Wall time of the whole sweep: budget=")] = "30m",
    model: Model = None,
    data: Data = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the final run, runs/NAME: run=")] = None,
    debug: Debug = False,
) -> None:
    from .grid import read_sweep

    plan = read_sweep(arguments or [], {"model": model, "data.path": data, "run": run}, budget)

    from .trials import print_settings, run_sweep

    settings, _ = run_sweep(plan)
    print_settings(settings)


def register(app: typer.Typer) -> None:
    """Add the command to `python -m finetune`."""
    app.command(
        "sweep",
        help=SWEEP_HELP,
        short_help="Try a few settings and seeds in one budget, on validation alone.",
        cls=settings_command(config_class),
    )(sweep)
