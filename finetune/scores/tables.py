"""Tables of a scored classifier, for runs/NAME/tables and the report; mini_llm/engine/report/page.py draws them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..examples import Example
from .calibration import Calibration
from .label_errors import suspected_label_errors
from .reliability import reliability_rows
from .selective import answered_at, risk_coverage

if TYPE_CHECKING:
    from ..metrics import Scores

POINTS = 200  # of a curve
CURVES = 12  # classes with a precision-recall curve: those with most examples
ERRORS = (50, 10)  # most confident mistakes: of all classes together, at most, and at least of each class
CLASS_ERRORS_LIMIT = 500
SUSPECTS = 100
TEXT = 400  # characters of a text that are shown
Table = tuple[list[str], list[list[Any]]]


def per_class_table(scores: "Scores", probabilities: np.ndarray, labels: np.ndarray) -> Table:
    """Precision, recall and F1 of each class with 95 % intervals, its support and average precision."""
    from sklearn.metrics import average_precision_score

    from ..metrics import wilson_interval
    from .intervals import confusion_intervals

    confusion = np.asarray(scores.confusion)
    f1_intervals = confusion_intervals(confusion)["f1"]
    rows = []
    for index, row in enumerate(scores.per_class):
        cells: list[Any] = [row.name]
        for share, count in ((row.precision, confusion[:, index].sum()), (row.recall, row.support)):
            cells += [share, *(wilson_interval(share, int(count)) if count else (None, None))]
        right = labels == index
        area = float(average_precision_score(right, probabilities[:, index])) if right.any() else None
        cells += [row.f1, *(f1_intervals[index] if row.support else (None, None)), row.support, area]
        rows.append(cells)
    columns = [f"{name}{end}" for name in ("precision", "recall", "f1") for end in ("", "_low", "_high")]
    return ["name", *columns, "support", "average_precision"], rows


def reliability_table(labels: np.ndarray, probabilities: np.ndarray, calibration: Calibration) -> Table:
    """One row per bin before and after temperature scaling: mean top probability, accuracy, number of rows."""
    stages = (("before", probabilities), ("after", calibration.apply(probabilities)))
    rows = [[stage, *row] for stage, values in stages for row in reliability_rows(labels, values)]
    return ["stage", "probability", "accuracy", "rows"], rows


def risk_coverage_table(labels: np.ndarray, probabilities: np.ndarray) -> Table:
    """The risk-coverage curve: share of rows answered, share of those that are wrong, threshold."""
    columns = risk_coverage(labels, probabilities)
    return ["coverage", "risk", "threshold"], [list(row) for row in thinned(np.column_stack(columns)).tolist()]


def precision_recall_table(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> Table:
    """Precision-recall curves, one class against the rest, of the CURVES classes with most examples."""
    from sklearn.metrics import precision_recall_curve

    support = np.bincount(labels, minlength=len(names))
    shown = sorted(np.argsort(-support, kind="stable")[:CURVES].tolist())
    rows: list[list[Any]] = []
    for index in shown:
        if support[index]:
            precision, recall, _ = precision_recall_curve(labels == index, probabilities[:, index])
            rows += [[names[index], *point] for point in thinned(np.column_stack([recall, precision])[::-1]).tolist()]
    return ["name", "recall", "precision"], rows


def abstention_table(labels: np.ndarray, probabilities: np.ndarray, calibration: Calibration, part: str) -> Table:
    """For each wanted precision its threshold, and coverage and precision where it was chosen and on `part`."""
    columns = ["wanted_precision", "threshold"]
    columns += [f"{name}_({calibration.fitted_on})" for name in ("coverage", "precision")]
    rows: list[list[Any]] = [[wanted, *threshold] for wanted, threshold in calibration.thresholds.items()]
    if part != calibration.fitted_on:
        columns += [f"{name}_({part})" for name in ("coverage", "precision")]
        calibrated = calibration.apply(probabilities)
        rows = [[*row, *answered_at(labels, calibrated, row[1])] for row in rows]
    return columns, rows


def errors_table(examples: Sequence[Example], probabilities: np.ndarray, names: Sequence[str]) -> Table:
    """The most confident mistakes by class, most confident first: the worst of all, and the worst of every class."""
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = [i for i in np.argsort(-confidence, kind="stable").tolist() if predicted[i] != examples[i].label]
    most, of_each = ERRORS
    chosen, taken = set(wrong[:most]), [0] * len(names)
    for index in wrong:
        label = examples[index].label
        if taken[label] < of_each and len(chosen) < CLASS_ERRORS_LIMIT:
            taken[label] += 1
            chosen.add(index)
    order = sorted(chosen, key=lambda i: (examples[i].label, -confidence[i], i))
    return ["source", "label", "predicted", "probability", "text"], [
        [
            examples[i].source,
            names[examples[i].label],
            names[int(predicted[i])],
            float(confidence[i]),
            examples[i].text[:TEXT],
        ]
        for i in order
    ]


def suspects_table(examples: Sequence[Example], probabilities: np.ndarray, names: Sequence[str]) -> Table:
    """Rows whose label is probably wrong, most suspect first; `probabilities` from models not trained on the rows."""
    found = suspected_label_errors(np.array([example.label for example in examples]), probabilities)[:SUSPECTS]
    return ["source", "label", "suggested", "probability_of_label", "probability_of_suggested", "text"], [
        [
            examples[row.index].source,
            names[row.label],
            names[row.suggested],
            row.self_confidence,
            row.probability,
            examples[row.index].text[:TEXT],
        ]
        for row in found
    ]


def thinned(points: np.ndarray) -> np.ndarray:
    """At most POINTS rows, evenly spread, first and last included."""
    if len(points) <= POINTS:
        return points
    return points[np.unique(np.linspace(0, len(points) - 1, POINTS).round().astype(int))]
