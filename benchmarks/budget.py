"""Whether runs with budgets of 30 s, 2 and 5 minutes end on time, and whether more time gives fewer bits per byte.

    python -m benchmarks.budget --data data/

Seconds are counted from the start of the run until the model is saved; the tokenizer exists before. A masked-LM loss is
converted to bits per byte of masked text with the tokens per byte of the validation text.
"""

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure import Comparison, publish
from benchmarks.runs import Run, pretrain
from mini_llm.engine.cli import parse_duration

SHORT = 60.0  # budgets below this may be missed by 10 %, longer ones by 5 %


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
            for shorter, longer in pairwise(budgets):
                figures = {longer: [bits(run) for run in runs[longer]], shorter: [bits(run) for run in runs[shorter]]}
                comparisons.append(Comparison(f"{kind}, bits per byte", "bits", figures, True, {shorter: 1.0}))
    publish(comparisons, "budget", out)
    for line in early:
        print(f"ended too early: {line}")


def bits(run: Run) -> float:
    """Bits per byte: unigram_bpb / unigram_loss converts nats per token on this text."""
    return run.summary["val/loss"] * run.summary["unigram_bpb"] / run.summary["unigram_loss"]


if __name__ == "__main__":
    typer.run(main)
