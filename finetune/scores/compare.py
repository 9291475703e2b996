"""Compare two classifiers on the same rows: is the difference more than chance?"""

from dataclasses import dataclass

import numpy as np

from .intervals import RESAMPLES, Interval, bca, confusion_scores, largest_cells, without_one_row

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Comparison:
    """B beside A on `rows` labelled rows; differences are B - A, with 95 % intervals of the paired bootstrap.

    wins: rows that only B classifies correctly; losses: rows that only A does; p_value: McNemar's exact test.
    """

    rows: int
    accuracy_a: float
    accuracy_b: float
    accuracy_difference: float
    accuracy_interval: Interval
    macro_f1_a: float
    macro_f1_b: float
    macro_f1_difference: float
    macro_f1_interval: Interval
    wins: int
    losses: int
    p_value: float

    def verdict(self, a: str = "A", b: str = "B") -> str:
        """Say which one is more accurate, or that no difference was shown (p >= 0.05 in McNemar's test)."""
        if self.p_value >= SIGNIFICANCE:
            return f"no difference shown between {a} and {b}"
        better, worse = (b, a) if self.wins > self.losses else (a, b)
        return f"{better} is more accurate than {worse}"

    def __str__(self) -> str:
        (low, high), (f1_low, f1_high) = self.accuracy_interval, self.macro_f1_interval
        return (
            f"accuracy {self.accuracy_a:.1%} and {self.accuracy_b:.1%}: difference "
            f"{100 * self.accuracy_difference:+.1f} points (95 %: {100 * low:+.1f} to {100 * high:+.1f})\n"
            f"macro F1 {self.macro_f1_a:.3f} and {self.macro_f1_b:.3f}: difference {self.macro_f1_difference:+.3f} "
            f"(95 %: {f1_low:+.3f} to {f1_high:+.3f})\n"
            f"{self.wins:,} wins, {self.losses:,} losses in {self.rows:,} rows, McNemar's exact test p = "
            f"{self.p_value:.2g}"
        )


def compare(labels: np.ndarray, probabilities_a: np.ndarray, probabilities_b: np.ndarray, seed: int = 0) -> Comparison:
    """Compare the predictions of two classifiers, from their probabilities (N, C) of the same rows.

    Raises ValueError if the shapes differ or there are no rows.
    """
    labels = np.asarray(labels)
    if not len(labels) or np.shape(probabilities_a) != np.shape(probabilities_b):
        raise ValueError(f"cannot compare {np.shape(probabilities_a)} with {np.shape(probabilities_b)} probabilities")
    if len(labels) != len(probabilities_a):
        raise ValueError(f"{len(labels)} labels, but {len(probabilities_a)} rows of probabilities")
    classes = np.shape(probabilities_a)[1]
    predicted = np.asarray(probabilities_a).argmax(-1), np.asarray(probabilities_b).argmax(-1)
    # Rows with the same label and the same two predictions are interchangeable: a resample draws their counts.
    cells, counts = np.unique(np.column_stack([labels, *predicted]), axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(labels), counts / len(labels), size=RESAMPLES)
    left_out, weights = without_one_row(counts), counts[largest_cells(counts)]
    right = [cells[:, 0] == cells[:, 1 + which] for which in range(2)]

    def accuracies(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return times @ right[0] / times.sum(-1), times @ right[1] / times.sum(-1)

    def macro_f1s(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = (confusion_scores(cells[:, [0, 1 + which]], times, classes) for which in range(2))
        return first["macro_f1"], second["macro_f1"]

    found = []
    for score in (accuracies, macro_f1s):
        (a,), (b,) = score(counts[None])
        resampled_a, resampled_b = score(draws)
        if len(labels) > 1:
            jackknife_a, jackknife_b = score(left_out)
            interval = bca(b - a, resampled_b - resampled_a, jackknife_b - jackknife_a, weights)
        else:
            interval = (float(b - a), float(b - a))
        found += [float(a), float(b), float(b - a), interval]
    wins, losses = int(counts[right[1] & ~right[0]].sum()), int(counts[right[0] & ~right[1]].sum())
    return Comparison(len(labels), *found, wins, losses, mcnemar(wins, losses))


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: are wins and losses equally likely?"""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
