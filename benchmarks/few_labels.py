"""Accuracy on film reviews with few labels: the Transformer alone, pooled, its teacher, TF-IDF, in one table.

    python -m benchmarks.few_labels --data DATA --labels 1000 --seeds 1,2,3,4,5 --pretrain 5m --budget 10m

DATA/imdb holds train.jsonl.gz, test.jsonl.gz and unsup.jsonl.gz. The encoder is pretrained once on the unlabelled
reviews. Each training reads `random.Random(seed).sample` of the training reviews and is tested on 5,000 test reviews,
`random.Random(0).sample`. No test review is read in training, as unlabelled text neither: those of the unlabelled
reviews that equal one, exactly or nearly, are left out by `finetune`. Runs are stored in --folder; finished ones are
reused when the command is repeated. Further settings are handed to `finetune`. Several budgets give a curve of accuracy
against minutes:

    python -m benchmarks.few_labels --data DATA --labels 1000 --seeds 4 --budget 1m,2m,4m,8m
"""

import gzip
import json
import random
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.sst2 import call

TESTED = 5000
ALL = 25_000


def main(
    settings: Annotated[list[str] | None, typer.Argument(help="Further settings of finetune, key=value.")] = None,
    data: Annotated[Path, typer.Option(help="Folder with imdb/.")] = Path("data"),
    labels: Annotated[int, typer.Option(help="Labelled reviews of each training.")] = 1000,
    seeds: Annotated[str, typer.Option(help="Seeds of the draws and of the trainings.")] = "1,2,3,4,5",
    pretrain: Annotated[str, typer.Option(help="Wall time of the pretraining.")] = "5m",
    budget: Annotated[
        str, typer.Option(help="Wall time of each training, with its teacher; several: 1m,2m,4m.")
    ] = "10m",
    folder: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("few-labels"),
) -> None:
    """Pretrain once, fine-tune once per seed, print mean and deviation of the accuracy."""
    folder.mkdir(exist_ok=True)
    imdb = data.resolve() / "imdb"
    call(folder, "pretrain", "--model", "mlm", "--data", f"{imdb}/unsup.jsonl.gz", "--budget", pretrain, "run=mlm")
    train = read(imdb / "train.jsonl.gz")
    write(folder / "test.jsonl", random.Random(0).sample(read(imdb / "test.jsonl.gz"), TESTED))
    budgets = budget.split(",")
    found: dict[tuple[str, str], list[float]] = {}
    for minutes, seed in product(budgets, map(int, seeds.split(","))):
        sample = train if labels >= ALL else random.Random(seed).sample(train, labels)
        write(folder / f"train-{labels}-{seed}.jsonl", sample)
        name = f"{labels}-{seed}" + f"-{minutes}" * (len(budgets) > 1)
        places = [f"data.path=train-{labels}-{seed}.jsonl", "data.test=test.jsonl"]
        places.append(f"data.unlabelled={imdb}/unsup.jsonl.gz")
        own = ["--model", "runs/mlm", f"run={name}", "--budget", minutes, f"seed={seed}"]
        call(folder, "finetune", *own, *places, *(settings or []))
        for row in json.loads((folder / "runs" / name / "summary.json").read_text())["scores"]:
            kind = row["name"].removeprefix(f"{name}, ") if row["name"] != name else "Transformer alone"
            kind = "linear teacher" if kind.startswith("teacher") else kind
            found.setdefault((kind, minutes), []).append(row["accuracy"])
    table = Table("classifier", "budget", "accuracy, mean", "deviation", "trainings", title=f"{labels:,} labels")
    for (kind, minutes), values in sorted(found.items(), key=lambda item: budgets.index(item[0][1])):
        deviation = f"{100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        table.add_row(kind, minutes, f"{100 * np.mean(values):.1f}", deviation, str(len(values)))
    Console(width=100).print(table)


def read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
