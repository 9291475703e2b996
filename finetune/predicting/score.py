"""Score a saved classifier on labelled data: `python -m finetune score MODEL_DIR FILE`."""

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from mini_llm.corpus.parts import find_scored
from mini_llm.engine.config import build_config
from mini_llm.engine.errors import DataError
from mini_llm.engine.run.files import plain

from ..data import Row, read_rows
from ..data_config import DataConfig
from ..metrics import compute_scores
from ..predict import Classifier
from ..quality.labels import unseen_labels
from ..scores.intervals import confusion_intervals, probability_intervals, with_intervals

FLAGS = {
    "data.on_null=skip": "--on-null skip",
    "data.encoding=": "--encoding=",
    "data.label=COLUMN": "--label COLUMN",
    "data.text=COLUMN": "--text COLUMN",
    "data.text_pair=COLUMN": "--text-pair COLUMN",
}


def score(
    directory: Path,
    source: str,
    text: str = "text",
    label: str = "label",
    split: str = "train",
    on_null: Literal["stop", "skip"] = "stop",
    batch_size: int = 64,
    encoding: str | None = None,
    alone: bool = False,
) -> dict[str, Any]:
    """Return the scores of the classifier in `directory` on the rows of `source`: a file, folder, glob or dataset name.

    "scores": accuracy, macro_f1, mcc, log_loss (nats) and ece of the calibrated probabilities, each with NAME_low and
    NAME_high, the 95 % interval; "per_class": one row per label; "confusion": counts by [label][prediction].
    `alone`: without the linear models stored beside the model. Raises CheckpointError, and DataError for
    labels that the classifier does not have.
    """
    settings = {"path": source, "text": text, "label": label, "on_null": on_null, "encoding": encoding}
    config = build_config(DataConfig, settings, "score")
    scored = find_scored(source, split)
    notes = scored.notes
    try:
        rows = read_rows(config, scored, notes)
    except DataError as error:
        raise with_flags(error) from None
    classifier = Classifier(directory, alone)
    ids = {name: index for index, name in enumerate(classifier.names)}
    check_labels_are_known(rows, ids, source, classifier.directory)
    labels = np.array([ids[row.label] for row in rows])
    probabilities = classifier.calibrated([row.text for row in rows], batch_size)
    if classifier.truncated:
        notes.append(
            f"{classifier.truncated:,} of {len(rows):,} texts are longer than {classifier.max_length} tokens: "
            "only their beginning was read"
        )
    found = all_scores(labels, probabilities, classifier.names)
    return {"model": str(classifier.directory), "data": source, **found, "notes": notes}


def all_scores(labels: np.ndarray, probabilities: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return "scores", "per_class" and "confusion" as `score` does, and "labels", the names."""
    found = compute_scores(labels, probabilities.argmax(-1), names, probabilities)
    numbers = {name: value for name, value in found.numbers().items() if name != "accuracy_error"}
    intervals: dict[str, Any] = confusion_intervals(found.confusion) | probability_intervals(labels, probabilities)
    per_class = [
        {**asdict(row), "f1_low": low, "f1_high": high}
        for row, (low, high) in zip(found.per_class, intervals.pop("f1"), strict=True)
    ]
    scores = with_intervals(numbers, intervals)
    return {"scores": scores, "per_class": per_class, "labels": names, "confusion": found.confusion}


def with_flags(error: DataError) -> DataError:
    """Return the error with flags of the command line in place of settings."""
    message = str(error)
    for setting, flag in FLAGS.items():
        message = message.replace(setting, flag)
    return DataError(message)


def check_labels_are_known(rows: list[Row], ids: dict[str, int], source: str, classifier: Path) -> None:
    """Raise DataError naming the rows of labels that the classifier does not have."""
    unseen = defaultdict(list)
    for row in rows:
        if row.label not in ids:
            unseen[row.label].append(row.number)
    if unseen:
        raise unseen_labels(unseen, list(ids), source, f"of {classifier}")


def print_scores(found: dict[str, Any], as_json: bool) -> None:
    """Print what `score` returned: tables, or one JSON object. Notes go to standard error."""
    for note in found["notes"]:
        print(note, file=sys.stderr)
    if as_json:
        print(json.dumps(plain(found), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{found['data']}: {found['scores']['examples']:,} rows, {found['model']}", markup=False)
    print_tables(found, console)


def print_tables(found: dict[str, Any], console: Console) -> None:
    """Print what `all_scores` returned: the scores, and those of each label."""
    scores = found["scores"]
    table = Table("score", "value", "95 % interval", box=None)
    for name, shown in (
        ("accuracy", "accuracy"),
        ("macro_f1", "macro F1"),
        ("mcc", "MCC"),
        ("log_loss", "log loss (nats)"),
        ("ece", "calibration error (ECE)"),
    ):
        table.add_row(shown, f"{scores[name]:.4f}", f"{scores[f'{name}_low']:.4f} to {scores[f'{name}_high']:.4f}")
    console.print(table)
    classes = Table("label", "precision", "recall", "F1", "95 % interval", "rows", box=None)
    for row in found["per_class"]:
        shown = [f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
        interval = f"{row['f1_low']:.3f} to {row['f1_high']:.3f}"
        classes.add_row(row["name"].replace("[", r"\["), *shown, interval, f"{row['support']:,}")
    console.print(classes)
