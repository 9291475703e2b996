"""Classification scores: scikit-learn behind `evaluate.Metric`, without network access and without writing files.

Undefined values are 0: the precision of a class that is never predicted, the recall of a class without examples, the F1
of both (`zero_division=0`), and the MCC if all labels or all predictions are of one class. As in scikit-learn, macro F1
is the mean over the classes that occur among labels or predictions; the per-class table lists all classes.
"""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import (
    confusion_matrix,
    precision_recall_fscore_support,
)

from mini_llm.engine.errors import DataError

from .scores.agreement import accuracy, macro_f1, matthews_correlation
from .scores.reliability import expected_calibration_error, log_loss

Z_95 = 1.959963984540054
CITATION = "Pedregosa et al. 2011, Scikit-learn: Machine Learning in Python"


class ClassificationMetric(evaluate.Metric):
    """Base class of the metrics below: takes label ids, returns plain numbers and lists.

    By default, `evaluate` stores its rows in a cache shared by all processes of a user, and creates a folder there even
    with keep_in_memory. This class keeps rows in memory and creates no folder.
    """

    summary = ""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True, seed=0)

    def _build_data_dir(self) -> str:
        return ""

    def _info(self) -> evaluate.MetricInfo:
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=self.summary,
            citation=CITATION,
            inputs_description="predictions and references: label ids, from 0",
            features=datasets.Features({"predictions": integer, "references": integer}),
        )


class Accuracy(ClassificationMetric):
    summary = "Share of examples with the correct label."

    def _compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, float]:
        return {"accuracy": accuracy(references, predictions)}


class MacroF1(ClassificationMetric):
    summary = "Unweighted mean of the F1 of the classes that occur among labels or predictions."

    def _compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, float]:
        return {"macro_f1": macro_f1(references, predictions)}


class MatthewsCorrelation(ClassificationMetric):
    summary = "Matthews correlation coefficient: 1 all correct, 0 no better than chance, -1 all wrong."

    def _compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, float]:
        return {"mcc": matthews_correlation(references, predictions)}


class PerClass(ClassificationMetric):
    summary = "Precision, recall, F1 and support of each of `num_labels` classes, in the order of their ids."

    def _compute(
        self, *, predictions: Any = None, references: Any = None, num_labels: int = 0, **options: Any
    ) -> dict[str, list[float]]:
        columns = precision_recall_fscore_support(
            references, predictions, labels=list(range(num_labels)), zero_division=0
        )
        return dict(zip(("precision", "recall", "f1", "support"), (c.tolist() for c in columns), strict=True))


class ConfusionMatrix(ClassificationMetric):
    summary = "Counts (num_labels, num_labels): row is the label, column the prediction."

    def _compute(
        self, *, predictions: Any = None, references: Any = None, num_labels: int = 0, **options: Any
    ) -> dict[str, list[list[int]]]:
        counts = confusion_matrix(references, predictions, labels=list(range(num_labels)))
        return {"confusion_matrix": counts.tolist()}


@dataclass(frozen=True)
class ClassScores:
    """One row of the per-class table."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """Scores of a classifier on `examples` labelled texts.

    `accuracy_error` is the standard error, `accuracy_low` and `accuracy_high` the 95 % Wilson interval.
    `confusion[label][prediction]` counts examples. Log loss (nats) and expected calibration error need probabilities.
    """

    examples: int
    accuracy: float
    accuracy_error: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    mcc: float
    per_class: list[ClassScores]
    confusion: list[list[int]]
    log_loss: float | None = None
    ece: float | None = None

    def numbers(self) -> dict[str, float]:
        """Return the scalar scores, for logs and summaries."""
        return {key: value for key, value in asdict(self).items() if isinstance(value, (int, float))}

    def class_rows(self) -> list[list[Any]]:
        """Return one row (name, precision, recall, F1, support) per class."""
        return [list(asdict(row).values()) for row in self.per_class]

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.1%} (95 %: {self.accuracy_low:.1%} to {self.accuracy_high:.1%}), "
            f"macro F1 {self.macro_f1:.3f}, MCC {self.mcc:.3f}, {self.examples:,} examples"
        )


def compute_scores(labels: Any, predictions: Any, names: list[str], probabilities: np.ndarray | None = None) -> Scores:
    """Compute all scores of `predictions` against `labels`, both sequences of ids into `names`.

    probabilities: (N, C), for log loss and ECE. Raises DataError if there are no examples, ValueError if lengths differ
    or an id is out of range.
    """
    references, predicted = np.asarray(labels, dtype=np.int64).ravel(), np.asarray(predictions, dtype=np.int64).ravel()
    if references.size != predicted.size:
        raise ValueError(f"{references.size} labels, but {predicted.size} predictions")
    if not references.size:
        raise DataError("no examples to score: the split is empty")
    if min(references.min(), predicted.min()) < 0 or max(references.max(), predicted.max()) >= len(names):
        raise ValueError(f"a label id is outside 0..{len(names) - 1}")

    def compute(metric: ClassificationMetric, **options: int) -> dict[str, Any]:
        # None is the answer of processes other than the first, but every process computes its own scores.
        return metric.compute(predictions=predicted, references=references, **options) or {}

    share = compute(Accuracy())["accuracy"]
    table = compute(PerClass(), num_labels=len(names))
    low, high = wilson_interval(share, references.size)
    return Scores(
        examples=int(references.size),
        accuracy=share,
        accuracy_error=sqrt(share * (1 - share) / references.size),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=compute(MacroF1())["macro_f1"],
        mcc=compute(MatthewsCorrelation())["mcc"],
        per_class=[ClassScores(name, *row) for name, *row in zip(names, *table.values(), strict=True)],
        confusion=compute(ConfusionMatrix(), num_labels=len(names))["confusion_matrix"],
        log_loss=None if probabilities is None else log_loss(references, probabilities),
        ece=None if probabilities is None else expected_calibration_error(references, probabilities),
    )


def wilson_interval(share: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share of `count` trials (Wilson 1927); valid at 0 % and 100 % too."""
    center = share + z * z / (2 * count)
    spread = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
