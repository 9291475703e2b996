"""How well predicted labels agree with the true ones.

Evaluations during training use these functions directly: the evaluate package takes seconds to import.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import f1_score, matthews_corrcoef


def accuracy(labels: Any, predictions: Any) -> float:
    """Share of equal labels."""
    return float((np.asarray(labels) == np.asarray(predictions)).mean())


def macro_f1(labels: Any, predictions: Any) -> float:
    """Unweighted mean of the F1 of the classes that occur among labels or predictions."""
    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def matthews_correlation(labels: Sequence[int] | np.ndarray, predictions: Sequence[int] | np.ndarray) -> float:
    """1: all correct, 0: no better than chance, -1: all wrong. 0 if all labels and predictions are of one class."""
    if len({*labels, *predictions}) < 2:
        return 0.0  # scikit-learn's value, without its warning
    return float(matthews_corrcoef(labels, predictions))


def validation_scores(loss: float, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """What an evaluation during training logs. Labels and predictions: (N,)."""
    return {
        "val/loss": loss,
        "val/accuracy": accuracy(labels, predictions),
        "val/macro_f1": macro_f1(labels, predictions),
        "val/mcc": matthews_correlation(labels, predictions),
    }
