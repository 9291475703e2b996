"""Answer only where the classifier is sure: risk-coverage curve, AURC, and the threshold for a wanted precision."""

import numpy as np

from .calibration import Threshold
from .reliability import top_probability

CONFIDENCE = 0.9
PRECISIONS = (0.9, 0.95, 0.99)


def ranked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return thresholds, answered and correct, each (K,), for every distinct top probability, highest first.

    answered[k] rows have a top probability of at least thresholds[k]; correct[k] of them are correct.
    """
    confidence, right = top_probability(labels, probabilities)
    order = np.argsort(-confidence, kind="stable")
    last = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    return confidence[order][last], last + 1, np.cumsum(right[order])[last]


def risk_coverage(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coverage (share of rows answered), risk (share of those that are wrong) and threshold, each (K,)."""
    thresholds, answered, correct = ranked(labels, probabilities)
    return answered / len(labels), 1 - correct / answered, thresholds


def aurc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the area under the risk-coverage curve (Geifman et al. 2019): the mean risk over all coverages.

    0 is best; a classifier whose confidence says nothing has its error rate. Rows of equal confidence are answered
    together.
    """
    _, answered, correct = ranked(labels, probabilities)
    return float(((1 - correct / answered) * np.diff(answered, prepend=0)).sum() / len(labels))


def threshold_for(
    labels: np.ndarray, probabilities: np.ndarray, precision: float, confidence: float = CONFIDENCE
) -> Threshold | None:
    """Return the threshold on the top probability that answers most rows at `precision`, or None if there is none.

    Requires the lower Clopper-Pearson bound (one-sided, at `confidence`) to reach the precision, not only the share of
    rows seen: otherwise the choice of the luckiest threshold would promise too much for new rows. With confidence 0.9,
    99 % needs 230 rows without a mistake. confidence=0 asks for the share alone.
    """
    from scipy.stats import beta

    thresholds, answered, correct = ranked(labels, probabilities)
    share = correct / answered
    bound = beta.ppf(1 - confidence, np.maximum(correct, 1), answered - correct + 1) if confidence else share
    good = np.flatnonzero((bound >= precision) & (share >= precision))
    if not len(good):
        return None
    best = good[-1]
    return Threshold(float(thresholds[best]), float(answered[best] / len(labels)), float(share[best]))


def answered_at(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> tuple[float, float | None]:
    """Return the coverage of a threshold, and the precision of the rows answered (None without any)."""
    confidence, right = top_probability(labels, probabilities)
    chosen = confidence >= threshold
    return float(chosen.mean()), float(right[chosen].mean()) if chosen.any() else None
