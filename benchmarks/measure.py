"""Shared by all benchmarks: interleaved repeats, medians, machine information, a JSON file and a table of ratios.

figures = interleave({"ours": lambda: tokens / seconds(step), "peer": ...}, repeats=3)
publish([Comparison("training, 6 x 384", "tokens/s", figures, goals={"peer": 1.25})], "training", out)
"""

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "numpy", "transformers", "sentencepiece", "tokenizers", "tiktoken", "llama-cpp-python")


class CaseError(Exception):
    """A case ended without a figure. The message says how."""


class NoFigures(list):
    """The figures of a case that has failed, which are none, and the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


def output_of(command: Sequence[Any], **options: Any) -> str:
    """Standard output of a process. Raises CaseError if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise CaseError(how_it_ended(done.returncode, done.stderr))
    return done.stdout


def how_it_ended(code: int, stderr: str = "") -> str:
    """The exit code or the signal, and the last line that the process wrote to standard error."""
    try:
        ending = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        ending = f"ended by signal {-code}"
    return ": ".join([ending, *stderr.strip().splitlines()[-1:]])


def interleave(cases: dict[str, Callable[[], float]], repeats: int = 3, say: bool = True) -> dict[str, list[float]]:
    """Run every case `repeats` times in turns, every other round in reverse order; returns the figures of each case.

    Interleaving spreads slow moments of the machine over all cases. A case is a function that returns its figure. One
    that raises CaseError gets NoFigures and no further turn.
    """
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(repeats):
        for name in list(cases)[:: 1 if i % 2 == 0 else -1]:
            if isinstance(figures[name], NoFigures):
                continue
            try:
                figures[name].append(float(cases[name]()))
            except CaseError as error:
                figures[name] = NoFigures(str(error))
                print(f"  round {i + 1}: {name}: no figure: {error}", file=sys.stderr, flush=True)
                continue
            if say:
                print(f"  round {i + 1}: {name}: {figures[name][-1]:,.4g}", file=sys.stderr, flush=True)
    return figures


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass
class Comparison:
    """Figures of ours (the first case) and of peers in one unit. A case with NoFigures is listed in `failures`.

    `goals` maps a case to the smallest acceptable ratio ours / case, or the largest one if `lower_is_better`.
    """

    title: str
    unit: str
    figures: dict[str, list[float]]
    lower_is_better: bool = False
    goals: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        failed = {name: values.reason for name, values in self.figures.items() if isinstance(values, NoFigures)}
        self.failures = self.failures | failed
        self.figures = {name: list(values) for name, values in self.figures.items()}

    @property
    def medians(self) -> dict[str, float]:
        return {name: median(values) for name, values in self.figures.items() if values}

    @property
    def ratios(self) -> dict[str, float]:
        """Our median divided by the median of each other case."""
        ours, *others = self.figures
        medians = self.medians
        return {name: medians[ours] / medians[name] for name in others if ours in medians and name in medians}

    def missed(self) -> list[str]:
        """The cases whose goal is missed. Nothing is said about a case that has failed."""
        sign = -1 if self.lower_is_better else 1
        goals = {name: goal for name, goal in self.goals.items() if name not in self.failures}
        return [name for name, goal in goals.items() if sign * self.ratios.get(name, -sign * 1e9) < sign * goal]


def machine() -> dict[str, Any]:
    """Hardware and package versions, stored with the figures."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": names[0] if names else platform.processor(), "cores": cores, "python": platform.python_version()}
    found |= {"memory_gb": round(memory[0] / 1e6, 1)} if memory else {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    return found | ({"gpu": torch.cuda.get_device_name()} if torch and torch.cuda.is_available() else {})


def publish(comparisons: Sequence[Comparison], name: str, out: Path | None = None) -> None:
    """Print the table and, if `out` is given, write `out`/`name`.json: figures, ratios, commit, command, machine."""
    show(comparisons, name)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        rows = [asdict(c) | {"medians": c.medians, "ratios": c.ratios, "missed": c.missed()} for c in comparisons]
        module = getattr(sys.modules["__main__"].__spec__, "name", f"benchmarks.{name}")
        text = json.dumps(head(module, sys.argv[1:]) | {"comparisons": rows}, indent=1)
        (out / f"{name}.json").write_text(text + "\n")


def show(comparisons: Sequence[Comparison], title: str) -> None:
    """Print one row per case: median, range, ratio ours / case, goal; or how a failed case ended."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measured", "case", "median", "lowest", "highest", "ours / case", "goal", title=title)
    for comparison in comparisons:
        for case, values in comparison.figures.items():
            measured = f"{comparison.title}, {comparison.unit}"
            if not values:
                table.add_row(measured, case, "none", "", "", "", comparison.failures.get(case, ""))
                continue
            ratio, goal = comparison.ratios.get(case), comparison.goals.get(case)
            sign = "<=" if comparison.lower_is_better else ">="
            row = (f"{figure:,.4g}" for figure in (median(values), min(values), max(values)))
            verdict = f"{sign} {goal:.3g}{' missed' if case in comparison.missed() else ''}" if goal is not None else ""
            table.add_row(measured, case, *row, f"{ratio:.3f}" if ratio else "", verdict)
    Console(width=140).print(table)


def head(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Where figures come from: commit, command, date, machine."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    command = shlex.join(["python", "-m", module, *arguments])
    return {"commit": commit, "command": command, "date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine()}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
