"""The command `sync` of mini-llm."""

from pathlib import Path
from typing import Annotated

import typer

from mini_llm.engine.all_runs.commands import Folder, OptionalNames
from mini_llm.engine.cli import EXIT_CODES, Debug, parse_duration, program

ME = program("mini_llm")
SYNC_HELP = f"""Send runs that were recorded offline to Weights & Biases.

Without RUN: all runs. The launches of a resumed run become one W&B run in which each step appears once. Runs that \
were sent are skipped, so that the command may be repeated. It needs a key (`wandb login`, or WANDB_API_KEY).

[bold]Examples[/bold]

  {ME} sync
  {ME} sync gpt gpt-classifier
  {ME} sync gpt --again

{EXIT_CODES}"""


def sync(
    names: OptionalNames = None,
    runs: Folder = Path("runs"),
    again: Annotated[bool, typer.Option("--again", help="Send also what was sent; it replaces what is there.")] = False,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Time limit for each run: 30s, 10m.")] = "10m",
    debug: Debug = False,
) -> None:
    from mini_llm.engine.all_runs.facts import find_run
    from mini_llm.engine.report.record import find_runs
    from mini_llm.engine.tracking.sync import sync_runs

    chosen = [find_run(name, runs) for name in names] if names else find_runs(runs)
    sync_runs(chosen, again, parse_duration(timeout))


def register(root: typer.Typer) -> None:
    """Add the command to the command line of mini-llm."""
    root.command(help=SYNC_HELP, short_help="Send runs that were recorded offline to Weights & Biases.")(sync)
