"""Scores with 95 % intervals from statistics of each row (Efron and Tibshirani 1993)."""

from collections.abc import Callable

import numpy as np

from ...scores.intervals import bca, resampled_means

# scores(means): by name, the score (R,) of each of R rows of means (R, F) of the statistics of a set of rows.
ScoresOf = Callable[[np.ndarray], dict[str, np.ndarray]]


def point_scores(statistics: np.ndarray, scores: ScoresOf) -> dict[str, float]:
    """Return the scores of all rows, from their statistics (N, F)."""
    return {name: float(value[0]) for name, value in scores(statistics.mean(0)[None]).items()}


def scores_with_intervals(statistics: np.ndarray, scores: ScoresOf, seed: int = 0) -> dict[str, float]:
    """Return each score with NAME_low and NAME_high, the BCa interval of 2,000 resamples of the rows."""
    found = point_scores(statistics, scores)
    if len(statistics) < 2:
        return found
    resampled = scores(resampled_means(statistics, seed))
    left_out = scores((statistics.sum(0) - statistics) / (len(statistics) - 1))
    result: dict[str, float] = {}
    for name, value in found.items():
        low, high = bca(value, resampled[name], left_out[name])
        result |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return result


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, and 0 where it is undefined."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 1e-12)
