"""Does a probability of 80 % mean 80 % correct? Log loss and expected calibration error (ECE).

ECE: rows are put into 15 bins of equal width by the probability of the predicted label, and the absolute difference of
mean probability and accuracy of each bin is averaged, weighted by its rows (Guo et al. 2017, equation 3).
"""

import numpy as np

BINS = 15
_SMALLEST = float(np.finfo(np.float32).tiny)


def true_class_loss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return -log p(label) of each row in nats, (N,). A probability of 0 counts as the smallest float32."""
    chosen = np.asarray(probabilities, dtype=np.float64)[np.arange(len(labels)), np.asarray(labels)]
    return -np.log(np.maximum(chosen, _SMALLEST))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean of -log p(label) in nats."""
    return float(true_class_loss(labels, probabilities).mean())


def top_probability(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of the predicted label, float64 (N,), and whether it is correct, bool (N,)."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return probabilities.max(-1), probabilities.argmax(-1) == np.asarray(labels)


def bin_numbers(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each probability: bin k holds k / BINS < p <= (k + 1) / BINS."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def bin_gaps(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return (N, BINS): probability minus correctness of each row in its bin, 0 elsewhere.

    The ECE is the sum over bins of the absolute mean of a column.
    """
    confidence, correct = top_probability(labels, probabilities)
    gaps = np.zeros((len(confidence), BINS))
    gaps[np.arange(len(confidence)), bin_numbers(confidence)] = confidence - correct
    return gaps


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the ECE over 15 bins of equal width, between 0 and 1."""
    return float(np.abs(bin_gaps(labels, probabilities).mean(0)).sum())


def reliability_rows(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, float, int]]:
    """Return (mean probability, accuracy, rows) of each bin that is not empty."""
    confidence, correct = top_probability(labels, probabilities)
    numbers = bin_numbers(confidence)
    chosen = [numbers == number for number in np.unique(numbers)]
    return [(float(confidence[rows].mean()), float(correct[rows].mean()), int(rows.sum())) for rows in chosen]
