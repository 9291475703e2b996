"""`python -m engine`: what the runs say, as pages and in the terminal, and one of their steps again."""

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
    "  python -m engine replay runs/gpt 120         step 120 again, bit for bit, with its documents\n\n"
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
    import sys

    from engine.errors import ConfigError
    from engine.files import read_json

    stage = (read_json(path / "environment.json") or {}).get("stage")
    if stage is None:
        raise ConfigError(f"{path}: no run of a training stage, or one of an older release (environment.json)")
    # The stage alone knows its data and model, and nothing here imports a stage.
    command = [sys.executable, "-m", stage, "replay", str(path), str(step)]
    os.execv(sys.executable, [*command, *(["--dump", str(dump)] if dump else [])])


if __name__ == "__main__":
    run_app(app, "engine")
