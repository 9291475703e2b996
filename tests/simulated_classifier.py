"""Labels and probabilities of a classifier whose calibration is known."""

import numpy as np


def simulate(count, classes=3, spread=2.0, seed=0):
    """Return labels drawn from perfectly calibrated probabilities, and those probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, classes)) * spread
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = (probabilities.cumsum(-1) < generator.random((count, 1))).sum(-1).clip(0, classes - 1)
    return labels, probabilities
