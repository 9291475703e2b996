"""Confidence intervals (95 %) from 2,000 bootstrap resamples of the scored rows (Efron and Tibshirani 1993).

Shares of rows (accuracy, recall, precision) get the Wilson interval instead, which stays valid at 0 % and 100 %: a
resample of rows that are all correct is all correct too, so that a bootstrap interval would have no width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .reliability import bin_gaps, true_class_loss

RESAMPLES = 2000
LEVEL = 0.95
MOST_CELLS = 2000
# With fewer rows, the interval of an accuracy of 80 % is wider than +- 5 %.
FEW_ROWS = 250
_CHUNK = 1 << 20  # drawn rows held at once
Interval = tuple[float, float]


def confusion_scores(cells: np.ndarray, counts: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Return macro F1 and MCC, (R,), and F1 by class, (R, C), of R confusion matrices.

    cells: (K, 2), the (label, prediction) of each cell that is not empty. counts: (R, K). Undefined values are 0, and
    macro F1 is the mean over the classes that occur among labels or predictions, as in scikit-learn.
    """
    from scipy.sparse import csr_matrix

    def sums(keys: np.ndarray, columns: np.ndarray) -> np.ndarray:
        chosen = csr_matrix((np.ones(len(keys)), (keys, columns)), shape=(classes, len(cells)))
        return (chosen @ counts.T).T

    every = np.arange(len(cells))
    diagonal = every[cells[:, 0] == cells[:, 1]]
    support, predicted = sums(cells[:, 0], every), sums(cells[:, 1], every)
    correct = sums(cells[diagonal, 0], diagonal)
    present = support + predicted > 0
    f1 = np.divide(2 * correct, support + predicted, out=np.zeros_like(correct), where=present)
    total = counts.sum(-1).astype(float)
    covariance = correct.sum(-1) * total - (support * predicted).sum(-1)
    spread = (total**2 - (support**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    mcc = np.divide(covariance, np.sqrt(spread), out=np.zeros_like(total), where=spread > 0)
    return {"macro_f1": f1.sum(-1) / np.maximum(present.sum(-1), 1), "mcc": mcc, "f1": f1}


def confusion_intervals(
    confusion: Sequence[Sequence[int]] | np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return the BCa intervals of macro F1 and MCC, and "f1": those of each class, of a confusion matrix (C, C).

    A resample of N rows is a multinomial draw of N from the cells of the matrix.
    """
    matrix = np.asarray(confusion)
    cells = np.argwhere(matrix)
    counts = matrix[cells[:, 0], cells[:, 1]]
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    whole = confusion_scores(cells, counts[None], len(matrix))
    resampled = confusion_scores(cells, draws, len(matrix))
    left_out = confusion_scores(cells, without_one_row(counts), len(matrix))
    weights = counts[largest_cells(counts)]
    found: dict[str, Any] = {
        name: bca(whole[name][0], resampled[name], left_out[name], weights) for name in ("macro_f1", "mcc")
    }
    found["f1"] = [
        bca(whole["f1"][0, label], resampled["f1"][:, label], left_out["f1"][:, label], weights)
        for label in range(len(matrix))
    ]
    return found


def without_one_row(counts: np.ndarray) -> np.ndarray:
    """Return jackknife counts (K', K): one row less in cell k, for all cells or the MOST_CELLS largest ones.

    All rows of a cell have the same jackknife value. It only sets the acceleration, so that cells of few rows can be
    left out where there are very many.
    """
    chosen = largest_cells(counts)
    reduced = np.repeat(counts[None], len(chosen), axis=0)
    reduced[np.arange(len(chosen)), chosen] -= 1
    return reduced


def largest_cells(counts: np.ndarray) -> np.ndarray:
    return np.sort(np.argsort(-counts, kind="stable")[:MOST_CELLS])


def bca(
    estimate: float,
    resampled: np.ndarray,
    left_out: np.ndarray,
    weights: np.ndarray | None = None,
    level: float = LEVEL,
) -> Interval:
    """Return the bias-corrected and accelerated interval (Efron 1987).

    left_out: jackknife values; weights: how many rows have each of them.
    """
    from scipy.special import ndtr, ndtri

    resampled = np.sort(resampled)
    if resampled[0] == resampled[-1]:
        return float(resampled[0]), float(resampled[0])
    # Resamples equal to the estimate count half, since scores of few rows have many ties.
    below = (np.searchsorted(resampled, estimate - 1e-12) + np.searchsorted(resampled, estimate + 1e-12)) / 2
    bias = ndtri(np.clip(below / len(resampled), 1 / len(resampled), 1 - 1 / len(resampled)))
    weights = np.ones(len(left_out)) if weights is None else weights
    differences = np.average(left_out, weights=weights) - left_out
    variance = (weights * differences**2).sum()
    acceleration = (weights * differences**3).sum() / (6 * variance**1.5) if variance > 0 else 0.0
    tails = ndtri((1 - level) / 2), ndtri((1 + level) / 2)
    shifted = [ndtr(bias + (bias + tail) / (1 - acceleration * (bias + tail))) for tail in tails]
    low, high = np.quantile(resampled, shifted)
    return float(low), float(high)


def resampled_means(columns: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the mean of each column of `columns` (N, F) in each resample of its rows: (R, F)."""
    count = len(columns)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, columns.shape[1]))
    size = max(1, _CHUNK // count)
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        means[start : start + rows] = times @ columns / count
    return means


def probability_intervals(
    labels: np.ndarray, probabilities: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Return the intervals of the log loss (BCa) and of the ECE (test inversion) of `probabilities` (N, C)."""
    losses = true_class_loss(labels, probabilities)
    gaps = bin_gaps(labels, probabilities)
    means = resampled_means(np.column_stack([losses, gaps]), seed, resamples)
    left_out = (losses.sum() - losses) / max(len(losses) - 1, 1)
    return {
        "log_loss": bca(losses.mean(), means[:, 0], left_out),
        "ece": absolute_sum_interval(gaps.mean(0), means[:, 1:]),
    }


def absolute_sum_interval(parts: np.ndarray, resampled: np.ndarray, level: float = LEVEL) -> Interval:
    """Return the interval of sum_k |parts_k|, such as the ECE, from resampled parts (R, K).

    The absolute value makes the sum of noisy parts too large, more so in a resample, so that percentiles miss the
    truth. This inverts a test instead: assume that the true parts are s * parts, take their noise from the resamples,
    and keep every scale s under which the observed sum is neither too large nor too small.
    """
    from scipy.optimize import brentq

    observed = float(np.abs(parts).sum())
    noise = resampled - parts

    def excess(factor: float, share: float) -> float:
        return float(np.quantile(np.abs(factor * parts + noise).sum(-1), share)) - observed

    if observed == 0:
        return 0.0, float(np.quantile(np.abs(noise).sum(-1), level))
    above, below = (1 + level) / 2, (1 - level) / 2
    most = 2.0
    while excess(most, below) < 0:
        most *= 2
    low = 0.0 if excess(0, above) >= 0 else brentq(excess, 0, most, args=(above,), xtol=1e-4)
    high = 0.0 if excess(0, below) >= 0 else brentq(excess, 0, most, args=(below,), xtol=1e-4)
    return low * observed, max(low, high) * observed


def with_intervals(numbers: Mapping[str, float], intervals: Mapping[str, Any]) -> dict[str, float]:
    """Add NAME_low and NAME_high to the numbers, for each of their names that has an interval."""
    row = dict(numbers)
    for name, interval in intervals.items():
        if name in numbers:
            row[f"{name}_low"], row[f"{name}_high"] = interval
    return row


def few_rows_advice(scored: int, rows: int) -> str | None:
    """What to tell the user if `scored` of the `rows` labelled rows are too few for a narrow interval, else None."""
    if scored >= FEW_ROWS:
        return None
    return (
        f"A score on {scored:,} rows has a wide interval. `python -m finetune cross-validate` scores all {rows:,} "
        "labelled rows, each with a model that was not trained on it"
    )
