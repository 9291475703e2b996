"""Measure classifiers on the same texts - size, accuracy, latency - and say which one to deploy."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import wilson_interval
from ..predict import Classifier
from ..scores.calibration import write_calibration
from ..scores.compare import compare
from ..scores.intervals import LEVEL, Interval
from ..scoring import calibrate
from .variants import count_weights, size_in_bytes

# Texts whose latency is measured, and how often: the best round counts, since other programs only make one slower.
LATENCY_TEXTS, ROUNDS, BATCH = 100, 3, 32


@dataclass(frozen=True)
class Measured:
    """One classifier. Intervals are 95 %; the difference is its accuracy minus the original's, on the same rows.

    weights: those that are not zero. p50_ms: median time of one text alone, tokenization included. front: no other
    classifier is both smaller and at least as accurate.
    """

    name: str
    directory: Path
    bytes: int
    weights: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    difference: float
    difference_low: float
    difference_high: float
    p50_ms: float
    texts_per_second: float
    front: bool = False

    def cells(self) -> dict[str, Any]:
        """The row of the table."""
        row = asdict(self) | {"MB": self.bytes / 1e6, "on_the_front": "yes" if self.front else ""}
        return {name: row[name] for name in COLUMNS}


COLUMNS = (
    *("name", "MB", "weights", "accuracy", "accuracy_low", "accuracy_high", "difference", "difference_low"),
    *("difference_high", "p50_ms", "texts_per_second", "on_the_front"),
)


def measure(
    directories: dict[str, Path],
    texts: list[str],
    labels: np.ndarray,
    variants: Collection[str] = (),
    held_out: tuple[list[str], np.ndarray] = ([], np.zeros(0)),
    pooled: Collection[str] = (),
) -> list[Measured]:
    """Measure classifiers, the original first, on `texts` with `labels`.

    The temperature of the `variants` is fitted anew on `held_out`, texts and labels, and stored. Those in `pooled`
    predict with the linear models beside them, the others without.
    """
    found: list[dict[str, Any]] = []
    original: np.ndarray | None = None
    for name, directory in directories.items():
        classifier = Classifier(directory, alone=name not in pooled)
        predict = classifier.calibrated if name in pooled else classifier.probabilities
        p50, rate = speed(predict, texts)
        probabilities = predict(texts, BATCH)
        original = probabilities if original is None else original
        if name in variants:
            write_calibration(directory, calibrate(held_out[1], classifier.probabilities(held_out[0], BATCH)))
        comparison = compare(labels, original, probabilities)
        low, high = accuracy_interval(comparison.accuracy_b, len(labels))
        found.append(
            {
                "name": name,
                "directory": directory,
                "bytes": size_in_bytes(directory, name in pooled),
                "weights": count_weights(directory),
                "accuracy": comparison.accuracy_b,
                "accuracy_low": low,
                "accuracy_high": high,
                "difference": comparison.accuracy_difference,
                "difference_low": comparison.accuracy_interval[0],
                "difference_high": comparison.accuracy_interval[1],
                "p50_ms": p50,
                "texts_per_second": rate,
            }
        )
    front = pareto_front([(row["bytes"], row["accuracy"]) for row in found])
    return [Measured(**row, front=index in front) for index, row in enumerate(found)]


def accuracy_interval(accuracy: float, count: int) -> Interval:
    """The bootstrap's percentile interval of a share of `count` rows, or Wilson's where all rows are equal.

    The number of correct rows in a resample is binomial, so that no resample has to be drawn.
    """
    from scipy.stats import binom

    if accuracy in (0, 1):
        return wilson_interval(accuracy, count)
    low, high = binom.interval(LEVEL, count, accuracy)
    return float(low) / count, float(high) / count


def speed(predict: Callable[[list[str], int], np.ndarray], texts: list[str]) -> tuple[float, float]:
    """Median milliseconds of one text alone, and texts per second in batches of BATCH."""
    sample = texts[:: max(1, len(texts) // LATENCY_TEXTS)][:LATENCY_TEXTS]
    predict(sample[:BATCH], BATCH)
    medians, rates = [], []
    for _ in range(ROUNDS):
        times = []
        for text in sample:
            started = time.perf_counter()
            predict([text], 1)
            times.append(time.perf_counter() - started)
        medians.append(1000 * float(np.median(times)))
        started = time.perf_counter()
        predict(sample, BATCH)
        rates.append(len(sample) / (time.perf_counter() - started))
    return min(medians), max(rates)


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the (cost, value) that no other point beats: none is as cheap and as good, and better in one."""
    return {
        index
        for index, (cost, value) in enumerate(points)
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    }


def choose(rows: Sequence[Measured], tolerance: float) -> Measured:
    """The smallest classifier that is shown to lose at most `tolerance` of accuracy; the first row is the original.

    Shown: the 95 % interval of the paired difference lies above -tolerance.
    """
    able = [row for row in rows if row.difference_low >= -tolerance]
    return min(able or rows[:1], key=lambda row: row.bytes)


def verdict(rows: Sequence[Measured], tolerance: float, scored_on: str) -> str:
    """What to deploy, in words."""
    original, chosen = rows[0], choose(rows, tolerance)
    limit = f"{100 * tolerance:g} points"
    if chosen is original:
        lines = [
            f"Deploy {original.name} itself: no smaller variant is shown to lose at most {limit} of accuracy "
            f"on the {scored_on}."
        ]
    else:
        lines = [
            f"Deploy {chosen.name}: {chosen.bytes / 1e6:.2f} MB instead of {original.bytes / 1e6:.2f} "
            f"({original.bytes / chosen.bytes:.1f} times smaller), accuracy {chosen.accuracy:.1%} against "
            f"{original.accuracy:.1%} on the {scored_on}. The difference is {100 * chosen.difference:+.1f} points "
            f"(95 %: {100 * chosen.difference_low:+.1f} to {100 * chosen.difference_high:+.1f}), within the "
            f"{limit} allowed. One text takes {chosen.p50_ms:.2f} ms instead of {original.p50_ms:.2f}. "
            f"It is {chosen.directory}."
        ]
    smaller = [row for row in rows if row.bytes < chosen.bytes]
    if smaller:
        best = max(smaller, key=lambda row: row.accuracy)
        lines.append(
            f"If size matters more: {best.name}, {best.bytes / 1e6:.2f} MB, accuracy {best.accuracy:.1%} "
            f"({100 * best.difference:+.1f} points, 95 %: {100 * best.difference_low:+.1f} to "
            f"{100 * best.difference_high:+.1f})."
        )
    best = max(rows, key=lambda row: row.accuracy)
    if best.difference_low > 0:
        lines.append(
            f"If accuracy matters more: {best.name}, {best.bytes / 1e6:.2f} MB, accuracy {best.accuracy:.1%} "
            f"(95 %: {100 * best.difference_low:+.1f} to {100 * best.difference_high:+.1f} points)."
        )
    fastest = min(rows, key=lambda row: row.p50_ms)
    if fastest.p50_ms < 0.8 * chosen.p50_ms:
        lines.append(
            f"If speed matters more: {fastest.name}, {fastest.p50_ms:.2f} ms a text, accuracy {fastest.accuracy:.1%}."
        )
    return "\n".join(lines)
