"""`python -m engine report` and `python -m engine summary`: what the runs say, as pages and in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

from engine.cli import EXIT_CODES, command_app, run_app

app = command_app(
    "Read finished or running runs.\n\n"
    "Examples:\n\n"
    "  python -m engine report                      every run under runs/\n\n"
    "  python -m engine report runs/gpt             one run\n\n"
    "  python -m engine summary runs/gpt runs/mlm   where the models lie, and their scores\n\n"
    f"{EXIT_CODES} --debug shows tracebacks."
)
Paths = Annotated[list[Path] | None, typer.Argument(metavar="RUN_DIR", help="run directories")]


@app.command()
def report(
    paths: Paths = None,
    runs: Annotated[Path, typer.Option(help="where the runs lie, when none is named")] = Path("runs"),
) -> None:
    """Write RUN_DIR/report.html, one file without links to the network, and an index.html beside the runs."""
    from engine.report import write_index, write_report
    from engine.run_record import find_runs

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
    from engine.summary import print_summary

    print_summary(paths)


if __name__ == "__main__":
    run_app(app, "engine")
