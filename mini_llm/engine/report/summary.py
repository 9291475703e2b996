"""The end of `make pipeline`: where the models are, scores next to baselines, a sample, and what to try next."""

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.report.record import Run, score_table, show
from mini_llm.stages import INSTALLED, local_commands

_SAMPLE_LINES = 15
_PIPED_WIDTH = 120
_TITLES = {
    "tokenizer": "Tokenizer and plain bytes",
    "pretrain": "Pretraining and its baseline",
    "finetune": "Classifiers and baselines (in brackets: 95 % confidence interval)",
}


def print_summary(paths: list[Path], console: Console | None = None) -> None:
    """Print the summary of a pipeline from summary.json and the tables of its runs.

    Names and skips runs without summary.json. Raises ConfigError if no run has one.
    """
    console = console or Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    runs = []
    for path in paths:
        run = Run(path)
        if run.summary:
            runs.append(run)
        else:
            console.print(Text(f"{path}: nothing to show yet (summary.json is missing)"))
    if not runs:
        raise ConfigError("none of these runs has a summary.json. Run `make pipeline` first")
    _print_models(runs, console)
    _print_scores(runs, console)
    _print_sample(runs, console)
    _print_next(runs, console)
    _print_offline(runs, console)


def _print_models(runs: list[Run], console: Console) -> None:
    table = _table(["run", "what", "parameters", "took", "directory"], numbers={2, 3})
    for run in runs:
        took = "" if run.seconds is None else show("seconds", run.seconds)
        parameters = run.summary.get("parameters")
        size = "" if parameters is None else show("parameters", parameters)
        table.add_row(*map(Text, (run.name, run.kind, size, took, str(run.location))))
    _section("Models", console)
    console.print(table)


def _print_scores(runs: list[Run], console: Console) -> None:
    for stage, title in _TITLES.items():
        tasks: dict[str, list[Run]] = {}
        for run in runs:
            if run.summary.get("job_type") == stage:
                tasks.setdefault(str(run.summary.get("task", "")), []).append(run)
        for task, group in tasks.items():
            _print_task(f"{title}: {task}" if len(tasks) > 1 and task else title, group, console)


def _print_task(title: str, runs: list[Run], console: Console) -> None:
    """One table of the runs of one task, with its baselines once."""
    rows = [row for run in runs for row in run.score_rows()]
    shared = {row.get("name"): row for row in reversed(rows) if row.get("baseline")}
    scores = score_table([*(row for row in rows if not row.get("baseline")), *reversed(shared.values())])
    if scores is None:
        return
    table = _table(scores.columns, numbers=set(range(1, len(scores.columns))))
    for row, baseline in zip(scores.rows, scores.baseline, strict=True):
        table.add_row(*[Text(cell) for cell in row], style="dim" if baseline else "bold")
    _section(title, console)
    console.print(table)


def _print_sample(runs: list[Run], console: Console) -> None:
    for run in runs:
        table = run.table("samples")
        if not table or not table["rows"] or not table["rows"][0]:
            continue
        *before, text = table["rows"][0]
        words = ", ".join(f"{name} {cell!r}" for name, cell in zip(table["columns"], before, strict=False))
        lines = str(text).splitlines()
        shown = "\n".join(lines[:_SAMPLE_LINES]) + ("\n..." if len(lines) > _SAMPLE_LINES else "")
        _section(f"A sample of {run.name}" + (f" ({words})" if words else ""), console)
        console.print(Padding(Text(shown), (0, 2), expand=False))
        return


def _print_next(runs: list[Run], console: Console) -> None:
    python = shlex.quote(_shortest(sys.executable))
    commands = []
    writer = next((run for run in runs if run.summary.get("objective") == "causal"), None)
    if writer is not None:
        commands.append((f"{python} -m generate {_quoted(writer.location)} --interactive", "write with the model"))
    judge = next((run for run in runs if run.summary.get("job_type") == "finetune"), None)
    if judge is not None:
        commands.append((f"{python} -m finetune predict {_quoted(judge.location)} FILE", "label the texts in a file"))
    longer = "mini-llm pretrain --data your.txt --budget 10m" if INSTALLED else "make pipeline DATA=your.txt BUDGET=10m"
    commands.append((longer, "the same on your text, for longer"))
    commands.append(
        ("mini-llm report" if INSTALLED else "make report", "curves and samples of every run, as runs/index.html")
    )
    commands = [(local_commands(command), why) for command, why in commands]
    _section("Try next", console)
    width = max(len(command) for command, _ in commands[:3])
    for command, why in commands[:3]:
        # Do not wrap, and write the reason as a shell comment, so that the line can be copied as a whole.
        console.print(Text(f"  {command:<{width}}  # {why}"), soft_wrap=True)


def _print_offline(runs: list[Run], console: Console) -> None:
    """How to send the runs that W&B has recorded offline, in one command."""
    waiting = [run.path for run in runs if any(not _is_sent(folder) for folder in run.path.glob("wandb/offline-run-*"))]
    if waiting:
        command = local_commands(f"python -m mini_llm sync {' '.join(map(_quoted, waiting))}")
        console.print()
        console.print(Text(f"W&B ran offline. To send these runs: {command}"), soft_wrap=True)


def _is_sent(folder: Path) -> bool:
    """Whether an offline run has not grown since `wandb sync` or `mini_llm sync` sent it."""
    marks = [*folder.glob("*.synced"), *folder.parent.glob("sent.json")]
    sent = max((mark.stat().st_mtime for mark in marks), default=0.0)
    return all(log.stat().st_mtime <= sent for log in folder.glob("*.wandb"))


def _section(title: str, console: Console) -> None:
    console.print()
    console.print(Text(title, style="bold underline"))


def _table(columns: list[str], numbers: set[int]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    return table


def _quoted(path: Path) -> str:
    return shlex.quote(_shortest(str(path)))


def _shortest(path: str) -> str:
    """The path relative to the current directory, if that is shorter."""
    return min(path, os.path.relpath(path), key=len)
