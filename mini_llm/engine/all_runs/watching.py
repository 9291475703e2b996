"""`python -m mini_llm watch RUN`: curves and rates of a run in the terminal, while it trains or afterwards."""

import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mini_llm.engine.all_runs.braille import draw
from mini_llm.engine.all_runs.facts import elapsed, state
from mini_llm.engine.all_runs.table import STYLES
from mini_llm.engine.report.record import Run
from mini_llm.engine.run.progress import human_number, human_time
from mini_llm.engine.run.state import StoredPlan, read_state

CURVES = {
    "train/loss": "loss",
    "val/loss": "val loss",
    "val/bpb": "val bits per byte",
    "val/accuracy": "val accuracy",
    "train/grad_norm": "gradient norm",
    "train/lr": "learning rate",
    "tokens_per_second": "tokens/s",
}
_LABEL = 18
_RECENT = 20  # steps of the rates


def watch(path: Path, interval: float, once: bool, console: Console) -> None:
    """Show the run until it is no longer alive; only once if `once`, or where the output is no terminal."""
    if once or not sys.stdout.isatty():
        console.print(view(path, console.width))
        return
    with Live(view(path, console.width), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while state(path, False) == "alive":
            time.sleep(interval)
            live.update(view(path, console.width), refresh=True)
        live.update(view(path, console.width), refresh=True)


def view(path: Path, width: int) -> Group:
    """State, rates and curves of a run, at most `width` characters wide."""
    run = Run(path)
    now = state(path, bool(run.finished))
    lines = [
        Text.assemble((str(path), "bold"), "  ", (now, STYLES[now]), f"  {run.kind}"),
        Text(_rates(run, path, now)),
    ]
    span = _span(run.rows)
    for key, title in CURVES.items():
        points = curve(run.rows, key)
        if len(points) > 1 and span[0] < span[1]:
            lines += _chart(title, points, span, width)
        elif points:
            lines.append(Text(f"{title:<{_LABEL}} {_number(points[-1][1])} (step {points[-1][0]:,})"))
    if any(len(curve(run.rows, key)) > 1 for key in CURVES):
        left, right = (f"{step:,}" for step in span)
        lines.append(Text(f"{'step':>{_LABEL}} {left}{right:>{max(1, width - _LABEL - 2 - len(left))}}", style="dim"))
    if len(lines) == 2:
        lines.append(Text("no step has been recorded yet", style="dim"))
    if score := run.headline():
        lines.append(Text(f"{'score':<{_LABEL}} {score}"))
    return Group(*lines)


def curve(rows: Iterable[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, by step."""
    points = [
        (row["step"], float(row[key]))
        for row in rows
        if "step" in row and isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
    ]
    return sorted(points)


def _chart(title: str, points: list[tuple[int, float]], span: tuple[int, int], width: int) -> list[Text]:
    """Two lines of braille: the title and the last value before the first, the lowest and highest before the second."""
    steps, values = zip(*points, strict=True)
    first, second = draw(steps, values, max(10, width - _LABEL - 2), 2, span)
    ends = f"{_number(min(values))} to {_number(max(values))}"
    name = Text.assemble((f"{title:<{_LABEL}} "[: _LABEL + 1], "bold"))
    return [
        Text.assemble(name, (first, "blue")),
        Text.assemble(f"{_number(values[-1]):<{_LABEL}} ", (second, "blue"), no_wrap=True),
        Text(f"{'':<{_LABEL}} {ends}", style="dim"),
    ]


def _span(rows: list[dict[str, Any]]) -> tuple[int, int]:
    steps = [row["step"] for row in rows if "step" in row] or [0]
    return min(steps), max(steps)


def _rates(run: Run, path: Path, now: str) -> str:
    """Step, tokens per second, MFU, steps per second and the time left."""
    timing = [row for row in run.rows if isinstance(row.get("elapsed"), (int, float)) and "step" in row]
    step = max((row["step"] for row in run.rows if "step" in row), default=0)
    plan = read_state(path / "plan.json", StoredPlan)
    total = plan.schedule.total if plan else None
    shown = [f"step {step:,}" + (f" of {total:,}" if total else "")]
    recent = timing[-_RECENT:]
    rates = [row["tokens_per_second"] for row in recent if isinstance(row.get("tokens_per_second"), (int, float))]
    if rates:
        shown.append(f"{human_number(sum(rates) / len(rates))} tokens/s")
    shares = [row["mfu"] for row in recent if isinstance(row.get("mfu"), (int, float)) and row["mfu"]]
    if shares:
        shown.append(f"MFU {sum(shares) / len(shares):.0%}")
    seconds = elapsed(run.rows)
    if seconds is not None:
        shown.append(f"{human_time(seconds)} of training")
    if len(recent) > 1 and (steps := recent[-1]["step"] - recent[0]["step"]) > 0:
        each = (recent[-1]["elapsed"] - recent[0]["elapsed"]) / steps
        if each > 0:
            shown.append(f"{1 / each:.3g} steps/s")
            if now == "alive" and total and total > step:
                shown.append(f"{human_time(each * (total - step))} left")
    return ", ".join(shown)


def _number(value: float) -> str:
    return human_number(value) if value >= 10_000 else f"{value:.4g}"
