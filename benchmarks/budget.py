"""Whether runs keep their budget, whether more time gives fewer bits per byte, and whether the plan chooses well.

    python -m benchmarks.budget main --data data/
    python -m benchmarks.budget grid --budget 60s
    python -m benchmarks.budget grid --budget 60s --threads 1 --threads 2 --data input.txt

Seconds are counted from the start of the run until the model is saved; the tokenizer exists before. A masked-LM loss is
converted to bits per byte of masked text with the tokens per byte of the validation text.

`grid` compares the run that the plan chooses with runs of other widths and with other ways to compute its steps, all
within the same budget. Other numbers of threads stand for slower machines.
"""

import itertools
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Comparison, interleave, publish
from benchmarks.runs import Run, pretrain
from mini_llm.engine.cli import parse_duration

SHORT = 60.0  # budgets below this may be missed by 10 %, longer ones by 5 %
PLANNED = "as planned"
LARGEST_LOSS = 1.03  # bits per byte of the plan against those of any other run of the grid

app = typer.Typer(add_completion=False)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="Folder with imdb/unsup.jsonl.gz.")] = Path("data"),
    budget: Annotated[list[str] | None, typer.Option(help="Budget such as 30s; repeat for several.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Preset: gpt or mlm; repeat for several.")] = None,
    repeats: int = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value settings of the runs.")] = None,
) -> None:
    """Print the seconds and the bits per byte of runs with each budget."""
    text = str((data / "imdb" / "unsup.jsonl.gz").resolve())
    budgets = budget or ["30s", "2m", "5m"]
    comparisons, early = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pretrain(folder, "first", "--data", text, "--budget", "5s")  # creates the tokenizer and the token store
        for kind in model or ["gpt", "mlm"]:
            runs: dict[str, list[Run]] = {length: [] for length in budgets}
            for i in range(repeats):
                for length in budgets:
                    options = ["--model", kind, "--data", text, "--budget", length, *(settings or [])]
                    runs[length].append(pretrain(folder, f"{kind}-{length}-{i}", *options))
            for length, found in runs.items():
                limit, slack = parse_duration(length), 0.1 if parse_duration(length) < SHORT else 0.05
                seconds = [run.inner for run in found]
                early += [f"{kind}, {length}: {s:.1f} s" for s in seconds if s < (1 - slack) * limit]
                figures = {"run": seconds, "budget": [limit]}
                notes = {"process": [run.seconds for run in found]}
                title = f"{kind}, seconds of a run of {length}"
                comparisons.append(Comparison(title, "s", figures, True, {"budget": 1 + slack}, notes))
            for shorter, longer in itertools.pairwise(budgets):
                figures = {longer: [bits(run) for run in runs[longer]], shorter: [bits(run) for run in runs[shorter]]}
                comparisons.append(Comparison(f"{kind}, bits per byte", "bits", figures, True, {shorter: 1.0}))
    publish(comparisons, "budget", out)
    for line in early:
        print(f"ended too early: {line}")


@app.command()
def grid(
    data: Annotated[Path | None, typer.Option(help="Text to train on; default: the built-in text.")] = None,
    budget: Annotated[str, typer.Option(help="Budget of every run.")] = "60s",
    model: Annotated[str, typer.Option(help="Preset: gpt or mlm.")] = "gpt",
    widths: Annotated[str, typer.Option(help="Widths beside the planned one, such as 64,128; default: four.")] = "",
    ways: Annotated[bool, typer.Option(help="Also runs with other micro-batches, threads and compilation.")] = True,
    threads: Annotated[list[int] | None, typer.Option(help="Threads of a machine; repeat for several.")] = None,
    repeats: int = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value settings of the runs.")] = None,
) -> None:
    """Print what the plan chooses beside the bits per byte of other choices with the same budget."""
    comparisons, plans = [], []
    options = ["--model", model, *(["--data", str(data.resolve())] if data else []), *(settings or [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pretrain(folder, "first", *options, "--budget", "5s")  # creates the tokenizer and the token store
        for number in threads or [len(os.sched_getaffinity(0))]:
            os.environ["OMP_NUM_THREADS"] = str(number)
            count = itertools.count()

            def trained(*more: str, number: int = number, count: itertools.count = count) -> float:
                return bits(pretrain(folder, f"run-{number}-{next(count)}", *options, "--budget", budget, *more))

            planned = trained()
            table = json.loads((folder / "runs" / f"run-{number}-0" / "tables" / "plan.json").read_text())
            chosen = {row[0]: row[1].replace(",", "") for row in table["rows"]}
            cases = _other_widths(int(chosen["hidden_size"]), widths) | (_other_ways(chosen, number) if ways else {})
            figures = interleave({case: partial(trained, *cases[case]) for case in cases}, repeats)
            figures = {PLANNED: [planned, *(trained() for _ in range(repeats - 1))], **figures}
            machine = f"{number} thread{'s' if number > 1 else ''}"
            plans.append((machine, table))
            title = f"{model}, {budget}, {machine}, width {chosen['hidden_size']}"
            comparisons.append(Comparison(title, "bits per byte", figures, True, dict.fromkeys(cases, LARGEST_LOSS)))
    for machine, table in plans:
        shown = Table(*table["columns"], title=f"the plan with {machine}")
        for row in table["rows"]:
            shown.add_row(*row)
        Console(width=140).print(shown)
    publish(comparisons, "budget-grid", out)
    for comparison in comparisons:
        best = min(comparison.medians, key=comparison.medians.__getitem__)
        loss = comparison.medians[PLANNED] / comparison.medians[best] - 1
        print(f"{comparison.title}: best of the grid: {best}; the plan has {loss:.1%} more bits per byte")


def _other_widths(chosen: int, given: str) -> dict[str, list[str]]:
    """Settings of runs with other widths: those given, or two smaller and two larger ones."""
    step = 32 if chosen < 192 else 64
    found = [int(width) for width in given.split(",")] if given else [chosen + i * step for i in (-2, -1, 1, 2)]
    return {f"width {w}": [f"sizes.hidden_size={w}"] for w in found if w >= 32 and w != chosen}


def _other_ways(chosen: dict[str, str], threads: int) -> dict[str, list[str]]:
    """Settings of runs of the planned sizes that compute their steps in other ways."""
    rows, batch = int(chosen["micro_batch_size"]), int(chosen["global_batch_size"])
    sizes = [f"sizes.hidden_size={chosen['hidden_size']}", f"global_batch_size={batch}"]
    found = {f"micro-batches of {n}": [f"micro_batch_size={n}"] for n in (rows // 2, 2 * rows) if n and batch % n == 0}
    found["not compiled" if chosen["compile"] == "yes" else "compiled"] = [
        f"runtime.compile={'false' if chosen['compile'] == 'yes' else 'true'}"
    ]
    if threads > 1:
        found["one thread"] = ["runtime.threads=1"]
    return {case: [*sizes, *settings] for case, settings in found.items()}


def bits(run: Run) -> float:
    """Bits per byte: unigram_bpb / unigram_loss converts nats per token on this text."""
    return run.summary["val/loss"] * run.summary["unigram_bpb"] / run.summary["unigram_loss"]


if __name__ == "__main__":
    app()
