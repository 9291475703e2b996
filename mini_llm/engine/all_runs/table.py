"""`python -m mini_llm runs` and `runs show`: all runs as a table, one run in detail."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_llm.engine.all_runs.facts import DAMAGE, Facts, facts, read_config
from mini_llm.engine.report.record import Run, find_runs, show
from mini_llm.engine.run.comparison import flatten
from mini_llm.engine.run.progress import human_number

STYLES = {"alive": "bold green", "stopped": "yellow", "finished": "", "damaged": "red"}
# Columns that a narrow terminal leaves out, the last one first.
_OPTIONAL = ("stage", "parameters", "tokens", "time", "data", "task", "device")
_TASK = 44  # characters of a task in the table
_SIZES = ("checkpoints", "model", "wandb")


def print_runs(runs: Path, as_json: bool, console: Console) -> None:
    """Print a row for each run below `runs`, grouped by stage. Raises ConfigError without runs."""
    rows = [facts(path) for path in find_runs(runs)]
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
        return
    rows.sort(key=lambda row: (row.kind, row.task, row.name))
    cells = [_cells(row) for row in rows]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown = _columns(cells, console.width)
    for column in shown:
        right = column in ("parameters", "tokens", "time")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in cells:
        table.add_row(*[row[column] for column in shown])
    console.print(table)


def _columns(rows: list[dict[str, Text]], width: int) -> list[str]:
    """The columns that some run fills; those of _OPTIONAL only as far as they fit into `width` characters."""
    filled = [name for name in rows[0] if any(row[name] for row in rows)]
    sizes = {name: max(len(name), *(len(row[name]) for row in rows)) + 2 for name in filled}
    shown = [name for name in filled if name not in _OPTIONAL]
    for name in _OPTIONAL:
        if name in filled and sum(sizes[column] for column in [*shown, name]) <= width:
            shown.append(name)
    return [name for name in filled if name in shown]


def _cells(row: Facts) -> dict[str, Text]:
    stage, _, objective = row.kind.partition(": ")
    step = f", step {row.steps:,}" if row.steps is not None and row.state in ("alive", "stopped") else ""
    cells: dict[str, Text | str] = {
        "run": Text(row.name, style="bold"),
        "state": Text(row.state + step, style=STYLES[row.state]),
        "stage": objective or stage,
        "task": row.task if len(row.task) <= _TASK else f"{row.task[: _TASK - 3]}...",
        "parameters": "" if row.parameters is None else human_number(row.parameters),
        "tokens": "" if row.tokens is None else human_number(row.tokens),
        "data": row.data,
        "score": row.score,
        "time": "" if row.seconds is None else show("seconds", row.seconds),
        "device": row.device,
    }
    return {name: cell if isinstance(cell, Text) else Text(cell) for name, cell in cells.items()}


def print_run(path: Path, as_json: bool, console: Console) -> None:
    """Print one run: state, scores, figures, files, configuration and commands."""
    row, run = facts(path), Run(path)
    sizes = {name: folder_size(path / name) for name in _SIZES if (path / name).is_dir()}
    saved = sorted(place.name for place in (path / "checkpoints").glob("*-*") if place.is_dir())
    config = flatten(read_config(path))
    if as_json:
        content = {**row.as_dict(), "summary": run.summary, "config": config, "checkpoints": saved, "bytes": sizes}
        print(json.dumps({**content, "environment": run.environment}, indent=2, default=str))
        return
    console.print(Text.assemble((str(path), "bold"), "  ", (row.state, STYLES[row.state]), f"  {row.kind}"))
    known = {name: cell for name, cell in _cells(row).items() if str(cell) and name not in ("run", "state", "stage")}
    for name, cell in known.items():
        _line(console, name, str(cell))
    for name, value in _figures(run):
        if name not in ("parameters", "task"):
            _line(console, name, value)
    _line(console, "checkpoints", ", ".join(saved) or "none")
    _line(console, "on disk", ", ".join(f"{name} {human_size(size)}" for name, size in sizes.items()) or "-")
    _line(console, "code", str(run.environment.get("commit") or run.environment.get("code") or "unknown"))
    _section(console, "Scores", _scores(run))
    _section(console, "Configuration", [f"{key}: {json.dumps(value, default=str)}" for key, value in config.items()])
    _section(console, "Commands", run.text("command.txt").splitlines())


def _figures(run: Run) -> list[tuple[str, str]]:
    try:
        return run.figures()
    except DAMAGE:
        return []


def _scores(run: Run) -> list[str]:
    try:
        table = run.scores()
    except DAMAGE:
        return []
    if table is None:
        return []
    lines = []
    for name, *cells in table.rows:
        scores = [f"{column} {cell}" for column, cell in zip(table.columns[1:], cells, strict=True) if cell]
        lines.append(f"{name}: {', '.join(scores)}")
    return lines


def _section(console: Console, title: str, lines: list[str]) -> None:
    if lines:
        console.print(Text(f"\n{title}", style="bold underline"))
        for line in lines:
            console.print(Text(f"  {line}"), soft_wrap=True)


def _line(console: Console, name: str, value: Any) -> None:
    console.print(Text.assemble((f"  {name:<29}", "dim"), str(value)), soft_wrap=True)


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder; what disappears while it is read counts as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def human_size(count: float) -> str:
    """1234567 -> "1.2 MB"."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} B"


def print_table(title: str, columns: list[str], rows: list[list[str]], console: Console) -> None:
    """A titled table of text; nothing without rows."""
    if not rows:
        return
    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Text(f"\n{title}", style="bold underline"))
    console.print(table)
