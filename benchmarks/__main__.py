"""`python -m benchmarks`: run the benchmarks of registry.py in sequence, store their results, print one table."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Comparison, head, show
from benchmarks.registry import BENCHMARKS, Benchmark
from benchmarks.runs import environment


def main(
    only: Annotated[list[str] | None, typer.Option(help="Benchmark to run; repeat for several.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with imdb/, sst2/ and shakespeare/.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for one JSON file per benchmark.")] = Path("bench"),
    listing: Annotated[bool, typer.Option("--list", help="List the benchmarks and run nothing.")] = False,
) -> None:
    """Run all benchmarks or those named. Benchmarks whose data is missing are skipped and reported."""
    names = [benchmark.name for benchmark in BENCHMARKS]
    unknown = sorted(set(only or []) - set(names))
    if unknown:
        print(f"benchmarks: unknown benchmark {', '.join(unknown)}; choose from {', '.join(names)}", file=sys.stderr)
        raise SystemExit(2)
    if data is not None and not data.is_dir():
        print(f"benchmarks: {data}: no such folder; --data is the one with imdb/ and sst2/", file=sys.stderr)
        raise SystemExit(2)
    chosen = [benchmark for benchmark in BENCHMARKS if only is None or benchmark.name in only]
    Console(width=140).print(overview(chosen, data))
    if listing:
        return
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for benchmark in chosen:
        if benchmark.data and data is None:
            continue
        print(f"== {benchmark.name}: {benchmark.measures}", flush=True)
        if run(benchmark, data, out.resolve()):
            failed.append(benchmark.name)
    comparisons = [
        Comparison(**{key: row[key] for key in Comparison.__dataclass_fields__})
        for benchmark in chosen
        if (file := out / f"{benchmark.name}.json").is_file()
        for row in json.loads(file.read_text()).get("comparisons", [])
    ]
    show(comparisons, f"benchmarks: {out}")
    if failed:
        print(f"benchmarks: failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def overview(chosen: list[Benchmark], data: Path | None) -> Table:
    table = Table("benchmark", "measures", "minutes", "needs")
    for benchmark in chosen:
        needs = [name + ("" if find_spec(name) else " (not installed)") for name in benchmark.peers]
        needs += [name + ("" if os.environ.get(name) else " (not set)") for name in benchmark.checkouts]
        if benchmark.data:
            needs.insert(0, "--data" if data else "--data (not given: skipped)")
        table.add_row(benchmark.name, benchmark.measures, f"{benchmark.minutes:g}", ", ".join(needs))
    return table


def run(benchmark: Benchmark, data: Path | None, out: Path) -> int:
    """Run one benchmark; returns its exit code. If it writes no JSON itself, its output is stored as JSON."""
    folder = str(data.resolve()) if data else ""
    arguments = [argument.format(data=folder, out=out) for argument in benchmark.arguments]
    if benchmark.json:
        arguments += ["--out", str(out)]
    command = [sys.executable, "-m", benchmark.command, *arguments]
    start, lines = time.monotonic(), []
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    if not benchmark.json and process.returncode == 0:
        record = head(benchmark.command, arguments) | {"seconds": round(time.monotonic() - start), "printed": lines}
        (out / f"{benchmark.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return process.returncode


if __name__ == "__main__":
    typer.run(main)
