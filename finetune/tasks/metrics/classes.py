"""Scores of single labels: accuracy, macro F1, Matthews correlation, log loss."""

import numpy as np

from ...scores.reliability import true_class_loss
from .bootstrap import ratio


def statistics(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return what the scores need of each row: (N, 3 C + 1) from class ids (N,) and probabilities (N, C)."""
    every = np.eye(probabilities.shape[1])
    labels, predicted = every[truth], every[probabilities.argmax(-1)]
    return np.concatenate([labels * predicted, labels, predicted, true_class_loss(truth, probabilities)[:, None]], 1)


def scores(means: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (R,) from means (R, 3 C + 1), defined as those of a classifier (finetune/metrics.py)."""
    both, labels, predicted = np.split(means[:, :-1], 3, axis=1)
    accuracy = both.sum(1)
    f1 = ratio(2 * both, labels + predicted)
    spread = (1 - (predicted**2).sum(1)) * (1 - (labels**2).sum(1))
    return {
        "accuracy": accuracy,
        "macro_f1": ratio(f1.sum(1), (labels + predicted > 0).sum(1).astype(float)),
        "mcc": ratio(accuracy - (labels * predicted).sum(1), np.sqrt(np.maximum(spread, 0))),
        "log_loss": means[:, -1],
    }
