"""The commands `distil` and `smaller` of `python -m finetune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mini_llm.engine.cli import EXIT_CODES, Debug, program, settings_argument, settings_command

ME = program("finetune")
DISTIL_HELP = f"""Distil a classifier into a smaller one: a student with the teacher's best layers, heads and channels \
learns its probabilities.

Data, budget and all other settings are those of the teacher's run unless given here; data.unlabelled=FILE adds texts \
to learn from. The student is a run like any other, runs/TEACHER-distilled. The same command again resumes it.

[bold]Examples[/bold]

  {ME} distil runs/gpt-classifier
  {ME} distil runs/gpt-classifier student.share=0.1 data.unlabelled=more.txt --budget 10m
  {ME} distil runs/gpt-classifier student.layers=2 student.hidden_size=128 --run small

{EXIT_CODES}"""
SMALLER_HELP = f"""Make smaller variants of a run, measure them, and say what to deploy.

Variants: half precision, int8 and int4 weights, half of the weights set to zero, a quarter of the heads and neurons \
removed (also in int8), and a distilled student (RUN-distilled, trained first if it is not there) with int8 and int4 \
weights. They are written to RUN/smaller, the table and the Pareto pictures to RUN/smaller.html. `predict` and `score` \
read them all.

[bold]Examples[/bold]

  {ME} smaller runs/gpt-classifier
  {ME} smaller runs/gpt-classifier --no-distil --tolerance 0.01
  {ME} smaller runs/gpt-classifier --student runs/small --student runs/tiny

{EXIT_CODES}"""


def config_class() -> Any:
    from .config import DistilConfig

    return DistilConfig


def distil(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER_RUN", help="Fine-tuned run to distil.")],
    arguments: Annotated[list[str] | None, settings_argument(config_class, "[KEY=VALUE]...")] = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run, runs/NAME: run=")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Wall time of training (30s, 10m, 4h): budget=")
    ] = None,
    debug: Debug = False,
) -> None:
    from .config import read_distil_config

    config = read_distil_config(teacher, arguments or [], {"run": run, "budget": budget})

    from .distil import distil as train_student

    train_student(config)


def smaller(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run of a classifier.")],
    student: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Distilled run to measure too, in place of RUN-distilled.")
    ] = None,
    distil: Annotated[bool, typer.Option(help="Train RUN-distilled if no student is given.")] = True,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time of its training.", show_default="that of RUN")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy that may be lost, for the verdict (0.02: two points).")
    ] = 0.02,
    debug: Debug = False,
) -> None:
    from .deployment import make_smaller, print_rows

    print_rows(*make_smaller(run, student or [], distil, budget, tolerance))


def register(app: typer.Typer) -> None:
    """Add the commands to `python -m finetune`."""
    app.command(
        "distil",
        help=DISTIL_HELP,
        short_help="Distil a classifier into a smaller one.",
        cls=settings_command(config_class),
    )(distil)
    app.command("smaller", help=SMALLER_HELP, short_help="Make smaller variants, and say what to deploy.")(smaller)
