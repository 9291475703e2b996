"""The command `cross-validate` of `python -m finetune`."""

from typing import Annotated

import typer

from mini_llm.engine.cli import EXIT_CODES, Debug, program, settings_argument, settings_command

from ..sweeping.commands import Data, Model, config_class

ME = program("finetune")
HELP = f"""Score every labelled row with a model that was not trained on it, then train on all rows.

With few rows, the score of one held-out part depends mostly on chance. This command splits the rows into folds. For \
each fold it trains a classifier on the other folds and scores it on this one, beside the usual baselines. Rows of one \
group (data.group), equal texts and, with single labels, near duplicates stay in one fold. All runs share the budget. \
The run on all rows is runs/MODEL-classifier (--run); the folds and their scores are in runs/NAME-folds. \
The same command again resumes, also after a kill.

One fold alone, on another machine for example: {ME} --data reviews.csv data.fold=2/5

[bold]Examples[/bold]

  {ME} cross-validate --model runs/mlm --data reviews.csv --budget 20m
  {ME} cross-validate --data reviews.csv --folds 10 data.group=author --no-final

{EXIT_CODES}"""


def cross_validate(
    arguments: Annotated[list[str] | None, settings_argument(config_class)] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the rows; each is scored once.")] = 5,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Wall time of all runs together: budget=")] = "20m",
    final: Annotated[bool, typer.Option("--final/--no-final", help="Then train on all rows.")] = True,
    model: Model = None,
    data: Data = None,
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the run on all rows, runs/NAME: run=")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    from .plan import read_plan

    plan = read_plan(arguments or [], {"model": model, "data.path": data, "run": run, "budget": budget}, folds, final)

    from .run import cross_validate as run_all
    from .scores import print_cross_validation

    if found := run_all(plan):
        print_cross_validation(found, as_json)


def register(app: typer.Typer) -> None:
    """Add the command to `python -m finetune`."""
    app.command(
        "cross-validate",
        help=HELP,
        short_help="Score every row with a model that was not trained on it; for few rows.",
        cls=settings_command(config_class),
    )(cross_validate)
