"""SST-2 accuracy of a GPT and an MLM encoder pretrained on reviews, against random weights and TF-IDF.

    python -m benchmarks.sst2 sst2/ imdb/unsup.jsonl.gz --budget 5m
    python -m benchmarks.sst2 sst2/ imdb/unsup.jsonl.gz --labels 1000 --seeds 5

`sst2/` contains train.tsv, dev.tsv and test.tsv with columns sentence and label. All runs are stored in --folder;
finished ones are reused when the command is repeated. Each classifier is trained --seeds times (data order, dropout,
head). The gain of pretraining is a paired difference per test example, averaged over seeds to reduce the noise of a
single training. With --labels, each training uses that many rows of train.tsv, drawn with its seed.
"""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.runs import environment
from finetune.predict import Classifier


def main(
    labelled: Annotated[Path, typer.Argument(help="Folder with train.tsv, dev.tsv and test.tsv.")],
    text: Annotated[Path, typer.Argument(help="Unlabelled text for pretraining.")],
    budget: Annotated[str, typer.Option(help="Wall time of each pretraining.")] = "5m",
    finetune_budget: Annotated[str, typer.Option(help="Maximum wall time of each fine-tuning.")] = "3m",
    seeds: Annotated[int, typer.Option(help="Trainings per classifier.")] = 1,
    labels: Annotated[int | None, typer.Option(help="Rows of train.tsv per training; default: all.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("sst2-benchmark"),
) -> None:
    """Pretrain, fine-tune and print the accuracy of every classifier."""
    folder.mkdir(exist_ok=True)
    data = [f"data.{name}={labelled.resolve() / file}" for name, file in SPLITS.items()]
    data += ["data.text=sentence", f"budget={finetune_budget}", "batch_size=64"]
    runs = {}
    for model in ("gpt", "mlm"):
        call(folder, "pretrain", "--model", model, "--data", str(text.resolve()), "--budget", budget, f"run={model}")
        for seed in range(seeds):
            # Take turns, so that a busy moment of the machine affects both.
            for weights in ("pretrained", "random"):
                name = f"{model}-{weights}" + (f"-of-{labels}" if labels else "") + (f"-{seed}" if seed else "")
                runs.setdefault(f"{model}-{weights}", []).append(name)
                settings = [f"run={name}", f"weights={weights}", f"seed={seed}"]
                if labels:
                    settings.append(f"data.path={draw(labelled / SPLITS['path'], labels, seed, folder)}")
                call(folder, "finetune", "--model", f"runs/{model}", *data, *settings)
    table = Table("classifier", "accuracy", "standard error", "macro F1", "MCC", "trainings")
    for name, repeats in runs.items():
        rows = [json.loads((folder / "runs" / run / "summary.json").read_text())["scores"] for run in repeats]
        add(table, name, [row[0] for row in rows])
    for baseline in rows[0][1:]:
        add(table, baseline["name"], [baseline])
    Console(width=100).print(table)
    with (labelled / SPLITS["test"]).open(newline="", encoding="utf-8") as file:
        test = list(csv.DictReader(file, delimiter="\t"))
    hits = {
        name: np.mean([correct(folder / "runs" / run, test) for run in repeats], 0) for name, repeats in runs.items()
    }
    for model in ("gpt", "mlm"):
        difference = hits[f"{model}-pretrained"] - hits[f"{model}-random"]
        mean, error = difference.mean(), difference.std(ddof=1) / len(difference) ** 0.5
        print(
            f"{model}: pretrained over random weights {100 * mean:+.1f} points, standard error {100 * error:.1f} "
            f"(the same {len(test)} examples, paired, {seeds} trainings each): {mean / error:.1f} standard errors"
        )


def draw(path: Path, count: int, seed: int, folder: Path) -> Path:
    """Write a file with `count` random rows of `path`."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = file
    sample = folder.resolve() / f"train-{count}-{seed}.tsv"
    sample.write_text("".join([header, *random.Random(seed).sample(rows, count)]), encoding="utf-8")
    return sample


def add(table: Table, name: str, scores: list[dict[str, float]]) -> None:
    """Add a row with the means of `scores`."""
    figures = [np.mean([row[key] for row in scores]) for key in ("accuracy", "accuracy_error", "macro_f1", "mcc")]
    table.add_row(name, *(f"{figure:.4f}" for figure in figures), str(len(scores)))


def correct(run: Path, test: list[dict[str, str]]) -> np.ndarray:
    """For each test example, 1.0 if the classifier of `run` is right, otherwise 0.0."""
    classifier = Classifier(run)
    guesses = classifier.probabilities([row["sentence"] for row in test]).argmax(-1)
    return np.array([classifier.names[guess] == row["label"] for guess, row in zip(guesses, test, strict=True)], float)


SPLITS = {"path": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


def call(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", *arguments]
    subprocess.run(command, cwd=folder, env=environment(), check=True)


if __name__ == "__main__":
    typer.run(main)
