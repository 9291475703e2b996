"""Scores of predicted numbers: mean absolute error, root mean squared error, R squared, Pearson correlation."""

import numpy as np

from .bootstrap import ratio


def statistics(truth: np.ndarray, predicted: np.ndarray, origin: float = 0.0) -> np.ndarray:
    """Return what the scores need of each row: (N, 6). `origin`, a typical number, keeps the sums small."""
    y, p = truth - origin, predicted - origin
    return np.stack([y, p, y * y, p * p, y * p, np.abs(y - p)], 1)


def scores(means: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (R,) from means (R, 6). R squared and Pearson's r are 0 where the numbers do not vary."""
    y, p, yy, pp, yp, distance = means.T
    variance, predicted_variance = np.maximum(yy - y * y, 0), np.maximum(pp - p * p, 0)
    squared_error = np.maximum(yy + pp - 2 * yp, 0)
    return {
        "mae": distance,
        "rmse": np.sqrt(squared_error),
        "r2": np.where(variance > 1e-12, 1 - ratio(squared_error, variance), 0.0),
        "pearson": ratio(yp - y * p, np.sqrt(variance * predicted_variance)),
    }
