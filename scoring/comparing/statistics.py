"""Paired tests on rows that two models both scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mini_llm.stages import load

from ..holm import adjusted
from ..tally import Interval, ratio_interval

SIGNIFICANCE = 0.05
RESAMPLES = 4999
_CHUNK = 1 << 22  # signs drawn at once


@dataclass(frozen=True)
class Paired:
    """B beside A on the same rows. `difference` is B - A with its 95 % interval.

    wins: rows where B is better, losses: rows where A is. p_value: of `test`, adjusted for the number of comparisons.
    """

    score: str
    rows: int
    a_score: float
    b_score: float
    difference: float
    interval: Interval
    wins: int
    losses: int
    p_value: float
    test: str
    lower_is_better: bool

    @property
    def shown(self) -> bool:
        return self.p_value < SIGNIFICANCE

    def verdict(self, a: str = "A", b: str = "B") -> str:
        if not self.shown:
            return f"no difference shown between {a} and {b}"
        better, worse = (b, a) if (self.difference < 0) == self.lower_is_better else (a, b)
        return f"{better} is better than {worse}"


def sign_flip_test(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Return the two-sided p-value of the paired permutation test: is the mean of `differences` (N,) 0?

    If the models do not differ, each difference is as likely with the other sign (Fisher 1935). The observed signs
    count as one of the permutations, so that p is valid for any number of them and never 0.
    """
    differences = np.asarray(differences, dtype=np.float64)
    differences = differences[differences != 0]
    count = len(differences)
    if not count:
        return 1.0
    observed = abs(differences.sum()) * (1 - 1e-12)
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK // count)
    extreme = 0
    for start in range(0, resamples, size):
        signs = generator.integers(2, size=(min(size, resamples - start), count), dtype=np.int8)
        # sum(s * d) with s = 2 * bit - 1
        sums = 2 * (signs @ differences) - differences.sum()
        extreme += int((np.abs(sums) >= observed).sum())
    return (1 + extreme) / (1 + resamples)


def compare_ratios(
    score: str, a: np.ndarray, b: np.ndarray, below: np.ndarray, scale: float = 1.0, lower: bool = True, seed: int = 0
) -> Paired:
    """Compare scale * sum(a) / sum(below) with the same of b, row by row (N,): bits per byte of documents."""
    difference = np.asarray(b) - np.asarray(a)
    low, high = ratio_interval(difference, below, seed)
    better, worse = int((difference < 0).sum()), int((difference > 0).sum())
    return Paired(
        score,
        len(difference),
        float(scale * a.sum() / below.sum()),
        float(scale * b.sum() / below.sum()),
        float(scale * difference.sum() / below.sum()),
        (scale * low, scale * high),
        better if lower else worse,
        worse if lower else better,
        sign_flip_test(difference, seed),
        "paired permutation test",
        lower,
    )


def compare_correct(score: str, a: np.ndarray, b: np.ndarray, seed: int = 0) -> Paired:
    """Compare which rows (N,) are correct: McNemar's exact test, and the paired bootstrap of the difference."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    wins, losses = int((b > a).sum()), int((a > b).sum())
    low, high = ratio_interval(b - a, np.ones(len(a)), seed)
    p_value = load("finetune", "scores.compare").mcnemar(wins, losses)
    difference = float((b - a).mean())
    return Paired(
        score, len(a), a.mean(), b.mean(), difference, (low, high), wins, losses, p_value, "McNemar's exact test", False
    )


def adjust(pairs: Sequence[Paired]) -> list[Paired]:
    """Return the comparisons with p-values adjusted for their number."""
    values = adjusted([pair.p_value for pair in pairs])
    return [replace(pair, p_value=value) for pair, value in zip(pairs, values, strict=True)]
