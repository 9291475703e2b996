"""Rank examples whose label is probably wrong (confident learning: Northcutt et al. 2021, JAIR 70)."""

from typing import NamedTuple

import numpy as np


class Suspect(NamedTuple):
    """Row `index`: the label it has, the label suggested instead, and the probabilities of both."""

    index: int
    label: int
    suggested: int
    self_confidence: float
    probability: float


def suspected_label_errors(labels: np.ndarray, probabilities: np.ndarray) -> list[Suspect]:
    """Return the rows whose label is suspect, most suspect (lowest probability of their own label) first.

    probabilities: (N, C), of models that were not trained on the row (out of fold, or held-out rows). A row is suspect
    if it lies off the diagonal of the confident joint (section 3.1): its most probable class, among those whose
    probability reaches the mean probability that rows labelled with that class give to it, is not its label. These
    means as thresholds allow for classes that the model is generally less sure of.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    thresholds = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels):
        thresholds[label] = probabilities[labels == label, label].mean()
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    suggested = confident.argmax(-1)
    rows = np.flatnonzero((confident.max(-1) >= 0) & (suggested != labels))
    own = probabilities[np.arange(len(labels)), labels]
    rows = rows[np.argsort(own[rows], kind="stable")]
    return [
        Suspect(int(i), int(labels[i]), int(suggested[i]), float(own[i]), float(probabilities[i, suggested[i]]))
        for i in rows
    ]
