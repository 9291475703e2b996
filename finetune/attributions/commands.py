"""The command `errors` of `python -m finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from mini_llm.engine.cli import EXIT_CODES, Debug, program

ME = program("finetune")
ERRORS_HELP = f"""Write RUN/errors.html: the most confident mistakes of each class with the words that caused them, \
and the rows whose label is probably wrong.

Mistakes are those on the run's test split, or without one on validation. Words are colored by integrated gradients.

[bold]Examples[/bold]

  {ME} errors runs/gpt-classifier
  {ME} errors runs/gpt-classifier --per-class 20

{EXIT_CODES}"""


def errors(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run of a classifier.")],
    per_class: Annotated[int, typer.Option(min=1, help="Mistakes to show of each class.")] = 8,
    alone: Annotated[bool, typer.Option("--alone", help="Use the model without the linear models beside it.")] = False,
    debug: Debug = False,
) -> None:
    from .mistakes import collect_errors
    from .page import write_errors

    found = collect_errors(run, per_class, alone)
    page = write_errors(run, found)
    suspects = ", ".join(f"{len(rows)} in {name}" for name, rows in found.suspects.items()) or "none"
    print(
        f"{sum(found.wrong.values()):,} of {found.rows:,} {found.part} texts have a wrong prediction; "
        f"suspected label errors: {suspects}\n{page}"
    )


def register(app: typer.Typer) -> None:
    """Add the command to `python -m finetune`."""
    app.command("errors", help=ERRORS_HELP, short_help="Show the worst mistakes and suspected label errors.")(errors)
