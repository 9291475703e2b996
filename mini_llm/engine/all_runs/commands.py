"""The commands `runs`, `watch` and `doctor` of mini-llm."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mini_llm.engine.cli import EXIT_CODES, Debug, command_app, program

ME = program("mini_llm")
RUNS_HELP = f"""List the runs of a folder; show, compare, check and delete them.

Without a command: a table of all runs with their state (alive, stopped or finished), stage, task, parameters, tokens \
read, data, score with its interval, time and device. RUN is a path, or a name below runs/.

[bold]Examples[/bold]

  {ME} runs
  {ME} runs --json
  {ME} runs show gpt
  {ME} runs diff gpt gpt-2          [dim]# settings, data, code, ends[/dim]
  {ME} runs verify                  [dim]# all hashes of all runs[/dim]
  {ME} runs lineage gpt-classifier  [dim]# tokenizer to export[/dim]
  {ME} runs rm gpt gpt-2 --yes

{EXIT_CODES}"""

SHOW_HELP = f"""Show one run: state, scores, figures, files, configuration and commands.

[bold]Examples[/bold]

  {ME} runs show gpt
  {ME} runs show gpt --json

{EXIT_CODES}"""

DIFF_HELP = f"""Show what differs between two runs: configuration, data, code, environment, ends of the curves.

The configuration is the resolved one; values that a run has chosen itself are marked. Data are compared by \
their hash.

[bold]Examples[/bold]

  {ME} runs diff gpt gpt-2
  {ME} runs diff runs/gpt /mnt/server/runs/gpt --json

{EXIT_CODES}"""

RM_HELP = f"""Delete runs, after a question. A live run is refused, and then nothing is deleted.

[bold]Examples[/bold]

  {ME} runs rm old-gpt
  {ME} runs rm old-gpt old-mlm --yes

{EXIT_CODES}"""

VERIFY_HELP = f"""Compare checkpoints, models, tokenizers and token stores with the hashes that were recorded for them.

Without RUN: all runs. The exit code is 4 when something is damaged.

[bold]Examples[/bold]

  {ME} runs verify
  {ME} runs verify gpt mlm

{EXIT_CODES}"""

LINEAGE_HELP = f"""Show what a run was made from, and what was made from it.

Tokenizer, token store, model, classifier and export, each with its hash; a parent that has changed since is marked.

[bold]Examples[/bold]

  {ME} runs lineage gpt-classifier
  {ME} runs lineage gpt-classifier --json

{EXIT_CODES}"""

WATCH_HELP = f"""Show curves and rates of a run in the terminal, until it ends; of a finished run once.

[bold]Examples[/bold]

  {ME} watch gpt
  {ME} watch gpt --once
  ssh server 'cd project && {ME} watch gpt --once'

{EXIT_CODES}"""

DOCTOR_HELP = f"""Check this machine: Python, PyTorch, compiler, kernels, threads, GPUs, W&B, caches, disk, clock.

Each line is ok, a warning or a problem; the latter two come with the command that mends it. Exit code 1 for a problem.

[bold]Examples[/bold]

  {ME} doctor
  {ME} doctor --json

{EXIT_CODES}"""


def _names(incomplete: str) -> list[str]:
    """Names of the runs below runs/."""
    from mini_llm.engine.all_runs.facts import RUNS, all_runs

    return [path.name for path in all_runs(RUNS) if path.name.startswith(incomplete)]


Folder = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs.")]
Name = Annotated[Path, typer.Argument(metavar="RUN", help="A run: its path, or its name.", autocompletion=_names)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT = Path("runs")

app = command_app(RUNS_HELP)


def console(columns: int = 200) -> Any:
    """A console as wide as the terminal; wide enough for a table where the output goes into a file."""
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else columns, highlight=False)


@app.callback(invoke_without_command=True, help=RUNS_HELP)
def table(ctx: typer.Context, runs: Folder = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    if ctx.invoked_subcommand is None:
        from mini_llm.engine.all_runs.table import print_runs

        print_runs(runs, as_json, console())


@app.command(help=SHOW_HELP, short_help="Show one run in detail.")
def show(name: Name, runs: Folder = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    from mini_llm.engine.all_runs.facts import find_run
    from mini_llm.engine.all_runs.table import print_run

    print_run(find_run(name, runs), as_json, console())


@app.command(help=DIFF_HELP, short_help="Show what differs between two runs.")
def diff(a: Name, b: Name, runs: Folder = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    from mini_llm.engine.all_runs.difference import print_differences
    from mini_llm.engine.all_runs.facts import find_run

    print_differences(find_run(a, runs), find_run(b, runs), as_json, console())


Names = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs: paths or names.", autocompletion=_names)]
OptionalNames = Annotated[
    list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs: paths or names.", autocompletion=_names)
]


@app.command(help=RM_HELP, short_help="Delete runs.")
def rm(
    names: Names,
    runs: Folder = DEFAULT,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: Debug = False,
) -> None:
    from mini_llm.engine.all_runs.facts import find_run
    from mini_llm.engine.all_runs.removal import remove_runs

    remove_runs([find_run(name, runs) for name in names], yes)


@app.command(help=VERIFY_HELP, short_help="Check the files of runs against their recorded hashes.")
def verify(names: OptionalNames = None, runs: Folder = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    from mini_llm.engine.all_runs.facts import find_run
    from mini_llm.engine.all_runs.verification import print_verification
    from mini_llm.engine.report.record import find_runs

    chosen = [find_run(name, runs) for name in names] if names else find_runs(runs)
    print_verification(chosen, as_json, console())


@app.command(help=LINEAGE_HELP, short_help="Show what a run was made from, and what from it.")
def lineage(name: Name, runs: Folder = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    from mini_llm.engine.all_runs.facts import find_run
    from mini_llm.engine.all_runs.lineage import print_lineage

    print_lineage(find_run(name, runs), as_json, console(columns=10_000))  # paths are never cut


def watch(
    name: Name,
    runs: Folder = DEFAULT,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.2, help="Time between two looks.")] = 2.0,
    debug: Debug = False,
) -> None:
    import sys

    from rich.console import Console

    from mini_llm.engine.all_runs.facts import find_run
    from mini_llm.engine.all_runs.watching import watch as show_run

    show_run(find_run(name, runs), interval, once, Console(width=None if sys.stdout.isatty() else 100, highlight=False))


def doctor(runs: Folder = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    from mini_llm.engine.doctor.checks import print_checks

    raise typer.Exit(print_checks(runs, as_json, console()))


def register(root: typer.Typer) -> None:
    """Add the commands to the command line of mini-llm."""
    root.add_typer(app, name="runs", short_help="List, show, compare, check and delete runs.")
    root.command(help=WATCH_HELP, short_help="Show curves and rates of a run in the terminal.")(watch)
    root.command(help=DOCTOR_HELP, short_help="Check this machine.")(doctor)
