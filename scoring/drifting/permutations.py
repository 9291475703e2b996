"""Two-sample statistics of documents, for the observed groups and for random ones of the same sizes.

`groups` (R, N) is 1 where a document belongs to the new texts and 0 where to the reference; its first row is the truth,
the others are permutations of it. Each statistic returns (R,) numbers, larger for a larger difference.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix


class Verdict(NamedTuple):
    """A statistic, what it exceeds in 5 % of random groups, and how often random groups reach it."""

    statistic: float
    threshold: float
    p_value: float


def draw_groups(reference: int, new: int, permutations: int, seed: int = 0) -> np.ndarray:
    """Return groups (permutations + 1, reference + new) as float32."""
    truth = np.repeat(np.array([0, 1], dtype=np.float32), [reference, new])
    order = np.random.default_rng(seed).random((permutations, len(truth))).argsort(-1)
    return np.vstack([truth, truth[order]])


def judge(statistics: np.ndarray, level: float = 0.05) -> Verdict:
    """Compare the first statistic with the others. The truth counts as one of the permutations, so p is never 0."""
    observed, random = statistics[0], statistics[1:]
    reached = (random >= observed - 1e-12 * abs(observed)).sum()
    threshold = np.quantile(random, 1 - level)
    return Verdict(float(observed), float(threshold), float((1 + reached) / (1 + len(random))))


def kolmogorov_smirnov(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The largest difference of the two distribution functions of `values` (N,)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of equal values
    new = groups[:, order]
    shares = new.cumsum(-1) / new.sum(-1, keepdims=True), (1 - new).cumsum(-1) / (1 - new).sum(-1, keepdims=True)
    return np.abs(shares[0] - shares[1])[:, last].max(-1)


def mean_difference(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The absolute difference of the means of `values` (N,)."""
    new = groups @ values
    return np.abs(new / groups.sum(-1) - (values.sum() - new) / (1 - groups).sum(-1))


def _counts(counts: csr_matrix, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (R, V) of the new texts and of the reference, from those of each document (N, V)."""
    new = np.asarray(counts.T @ groups.T).T
    return new, np.asarray(counts.sum(0)) - new


def jensen_shannon(counts: csr_matrix, groups: np.ndarray) -> np.ndarray:
    """The Jensen-Shannon divergence in bits, 0 to 1, of the distributions of tokens (Lin 1991); counts (N, V)."""
    p, q = (part / np.maximum(part.sum(-1, keepdims=True), 1e-12) for part in _counts(counts, groups))
    middle = (p + q) / 2

    def divergence(side: np.ndarray) -> np.ndarray:
        ratio = np.divide(side, middle, out=np.ones_like(side), where=side > 0)
        return (side * np.log2(ratio)).sum(-1)

    return (divergence(p) + divergence(q)) / 2


def unknown_share(counts: csr_matrix, groups: np.ndarray) -> np.ndarray:
    """The share of the new texts' words that the reference never has; counts of words (N, V)."""
    new, reference = _counts(counts, groups)
    return (new * (reference < 0.5)).sum(-1) / np.maximum(new.sum(-1), 1e-12)


def mean_discrepancy(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The squared maximum mean discrepancy of `vectors` (N, C) with a Gaussian kernel (Gretton et al. 2012), whose
    width is the median distance. Components are scaled to a standard deviation of 1."""
    vectors = (vectors - vectors.mean(0)) / np.maximum(vectors.std(0), 1e-12)
    squares = (vectors**2).sum(-1)
    distances = np.maximum(squares[:, None] + squares - 2 * vectors @ vectors.T, 0)
    median = np.median(distances[np.triu_indices(len(vectors), 1)])
    kernel = np.exp(-distances / max(median, 1e-12)).astype(np.float64)
    within_new = ((groups @ kernel) * groups).sum(-1)
    from_new = groups @ kernel.sum(-1)
    across, within_reference = from_new - within_new, kernel.sum() - 2 * from_new + within_new
    new, reference = groups.sum(-1), (1 - groups).sum(-1)
    return within_new / new**2 + within_reference / reference**2 - 2 * across / (new * reference)
