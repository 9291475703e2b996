"""Scores of predicted sets of labels: micro and macro F1, exact matches, wrong labels."""

import numpy as np

from .bootstrap import ratio


def statistics(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return what the scores need of each row: (N, 3 L + 2) from 0 or 1 (N, L) twice."""
    both = truth * predicted
    exact = (truth == predicted).all(-1, keepdims=True)
    wrong = (truth != predicted).mean(-1, keepdims=True)
    return np.concatenate([both, truth, predicted, exact, wrong], 1).astype(float)


def scores(means: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (R,) from means (R, 3 L + 2).

    Micro F1 counts all labels of all rows together; macro F1 is the mean over the labels that occur among labels or
    predictions, as in scikit-learn. exact_match is the share of rows with every label right, hamming_loss the share of
    wrong decisions.
    """
    both, truth, predicted = np.split(means[:, :-2], 3, axis=1)
    present = truth + predicted > 0
    f1 = ratio(2 * both, truth + predicted)
    return {
        "micro_f1": ratio(2 * both.sum(1), (truth + predicted).sum(1)),
        "macro_f1": ratio(f1.sum(1), present.sum(1).astype(float)),
        "exact_match": means[:, -2],
        "hamming_loss": means[:, -1],
    }
