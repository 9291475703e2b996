"""The scores of a cross-validation: a row per classifier over all folds, and those of every row of the data.

Mean and standard deviation are over folds. The deviation says how much a score depends on the rows; the folds share
training rows, so that it understates that of independent data (Bengio and Grandvalet 2004).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mini_llm.engine.report.record import Run
from mini_llm.engine.run.files import plain, write_json

from ..metrics import wilson_interval
from ..predicting.score import all_scores, print_tables
from ..recipe.ensemble import FOLDER
from ..scores.calibration import Calibration, read_calibration
from ..scores.predictions import is_pooled, read_predictions
from ..tasks.registry import SINGLE_LABEL, TASKS

METRICS = ("accuracy", "macro_f1", "mcc")
ALONE, PREDICT, TEACHER = "Transformer alone", "pooled, as predict", "linear teacher"


def collect(runs: Sequence[Path], task: str, data: str) -> dict[str, Any]:
    """Return the scores of finished folds.

    "rows": by classifier, baselines too: "name", "baseline", each of "metrics" with NAME_deviation, and the 95 %
    interval of the accuracy of all rows. "examples": rows of the data. Single labels: also "scores", "per_class",
    "labels" and "confusion" of what `predict` answers for every row, by the model that has not seen it.
    """
    metrics = list(METRICS if task == SINGLE_LABEL else TASKS[task].metrics)
    table = [rows_of_fold(run) for run in runs]
    counts = np.array([rows[ALONE]["examples"] for rows in table])
    # A baseline that some folds lack has no row.
    names = [name for name in table[0] if all(name in rows for rows in table)]
    if all(rows[PREDICT] is rows[ALONE] for rows in table):
        names.remove(PREDICT)
    found: dict[str, Any] = {"task": task, "data": data, "folds": len(runs), "examples": int(counts.sum())}
    found |= {"metrics": metrics, "rows": [], "notes": []}
    for name in names:
        row: dict[str, Any] = {"name": name, "baseline": bool(table[0][name]["baseline"])}
        for metric in metrics:
            values = np.array([rows[name][metric] for rows in table])
            row |= {metric: float(np.average(values, weights=counts)), f"{metric}_deviation": float(values.std(ddof=1))}
        if metrics[0] == "accuracy":
            row["accuracy_low"], row["accuracy_high"] = wilson_interval(row["accuracy"], found["examples"])
        found["rows"].append(row)
    return found if task != SINGLE_LABEL else {**found, **out_of_fold(runs)}


def rows_of_fold(run: Path) -> dict[str, dict[str, Any]]:
    """The scores of a fold by classifier: the Transformer, what `predict` answers, baselines."""
    found: dict[str, dict[str, Any]] = {}
    for row in Run(run).score_rows():
        name = str(row["name"])
        if name == run.name:
            # Where the pool is no better on validation, `predict` answers what the Transformer does.
            found[ALONE] = found[PREDICT] = row
        elif name.startswith(run.name):
            found[PREDICT] = row
        else:
            found[TEACHER if name.startswith("teacher") else name] = row
    return found


def out_of_fold(runs: Sequence[Path]) -> dict[str, Any]:
    """The scores of the calibrated answers of `predict` for all rows."""
    names: list[str] = []
    labels, probabilities = [], []
    for run in runs:
        folder = run / "model" / FOLDER if is_pooled(run) else run / "model"
        calibration = read_calibration(folder) or Calibration()
        fold = read_predictions(run)
        names = fold.names
        labels += [names.index(label) for label in fold.labels]
        probabilities.append(calibration.apply(fold.probabilities))
    return all_scores(np.array(labels), np.concatenate(probabilities), names)


def record(folder: Path, found: dict[str, Any]) -> None:
    """Write tables/cross_validation.json, a row per classifier, and summary.json for reports."""
    columns = ["classifier", *(column for metric in found["metrics"] for column in (metric, f"{metric} deviation"))]
    rows = [
        [row["name"], *(row[key] for metric in found["metrics"] for key in (metric, f"{metric}_deviation"))]
        for row in found["rows"]
    ]
    (folder / "tables").mkdir(exist_ok=True)
    table = {"name": "cross_validation", "step": None, "columns": columns, "rows": rows}
    write_json(folder / "tables" / "cross_validation.json", table)
    objective = "classification" if found["task"] == SINGLE_LABEL else found["task"]
    scores = [{"examples": found["examples"], **row} for row in found["rows"]]
    task = f"{found['folds']} folds of {found['data']}"
    write_json(folder / "summary.json", {"objective": objective, "task": task, "scored_on": "folds", "scores": scores})


def print_cross_validation(found: dict[str, Any], as_json: bool) -> None:
    """Print what `collect` returned: tables, or one JSON object."""
    if as_json:
        print(json.dumps(plain(found), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    rows = f"{found['data']}: {found['examples']:,} rows in {found['folds']} folds"
    console.print(f"{rows}; mean and standard deviation of the folds", markup=False)
    first, *others = found["metrics"]
    interval = ["95 %"] if first == "accuracy" else []
    table = Table("classifier", box=None)
    for heading in (first, *interval, *others):
        table.add_column(heading.replace("_", " "), no_wrap=True)
    for row in found["rows"]:
        values = [f"{row[metric]:.3f} +- {row[f'{metric}_deviation']:.3f}" for metric in found["metrics"]]
        shown = [f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"] if interval else []
        table.add_row(row["name"], values[0], *shown, *values[1:])
    console.print(table)
    if "per_class" in found:
        console.print("What predict answers, each row by the model that has not seen it:")
        print_tables(found, console)
    for note in found["notes"]:
        console.print(note, markup=False)
