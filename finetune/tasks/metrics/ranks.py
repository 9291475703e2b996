"""Scores of ordered classes: mean distance in ranks, quadratic weighted kappa, accuracy."""

import numpy as np

from .bootstrap import ratio


def statistics(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return what the scores need of each row: (N, 7) from ranks (N,) twice."""
    y, p = truth.astype(float), predicted.astype(float)
    return np.stack([y, p, y * y, p * p, (y - p) ** 2, np.abs(y - p), y == p], 1)


def scores(means: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (R,) from means (R, 7).

    rank_mae is the mean distance in ranks. kappa is Cohen's kappa with quadratic weights (Cohen 1968): one minus the
    mean squared distance over what independent labels and predictions would give.
    """
    y, p, yy, pp, squared, distance, hits = means.T
    return {
        "rank_mae": distance,
        "kappa": np.where(yy + pp - 2 * y * p > 1e-12, 1 - ratio(squared, yy + pp - 2 * y * p), 0.0),
        "accuracy": hits,
    }
