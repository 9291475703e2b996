"""Logistic regression on sparse or dense features, one class against the rest, with its regularization by
cross-validation."""

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

# Inverse regularization, in the order in which they are tried while there is time.
STRENGTHS = (3.0, 10.0, 1.0, 30.0, 0.3, 100.0)
FOLDS = 5
# For much text, whose cross-validation takes minutes.
FEW_FOLDS, FEW_STRENGTHS = 3, (3.0, 10.0)
LEAST_PROBABILITY = 1e-4


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread: liblinear calls it with one vector at a time, and two threads take three times the
    processor time of one, because they spin while they wait for each other."""
    import sklearn.linear_model  # noqa: F401  its BLAS library can be limited once it is loaded
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def fit(
    features: Any,
    dimensions: Sequence[int],
    labels: np.ndarray,
    classes: int,
    strength: float,
    seed: int,
    naive_bayes: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and intercepts. A class without a label gets a probability near 0.

    `dimensions`: the widths of feature blocks, each of which has a model of its own; their log-odds are averaged.
    `naive_bayes`: multiply sparse features by their log-count ratios.
    """
    if not dimensions:
        return fit_one(features, labels, classes, strength, seed, naive_bayes)
    blocks = np.split(features, np.cumsum(dimensions)[:-1], axis=1)
    fits = [fit_one(block, labels, classes, strength, seed) for block in blocks]
    return np.hstack([weights for weights, _ in fits]) / len(fits), np.mean([bias for _, bias in fits], axis=0)


def fit_one(
    features: Any, labels: np.ndarray, classes: int, strength: float, seed: int, naive_bayes: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    # One class against the rest with liblinear is ten times faster here than the multinomial loss, and as good.
    rows = [1] if classes == 2 else range(classes)
    coefficients, intercepts = np.zeros((len(rows), features.shape[1])), np.full(len(rows), -9.0)
    for row, positive in enumerate(rows):
        wanted = labels == positive
        if not 0 < wanted.sum() < len(labels):
            intercepts[row] = 9.0 if wanted.all() else -9.0
            continue
        scale = log_count_ratios(features, wanted) if naive_bayes else None
        model = LogisticRegression(C=strength, solver="liblinear", random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features if scale is None else features.multiply(scale).tocsr(), wanted)
        coefficients[row], intercepts[row] = model.coef_[0] * (1.0 if scale is None else scale), model.intercept_[0]
    return coefficients, intercepts


def log_count_ratios(features: Any, wanted: np.ndarray) -> np.ndarray:
    """log(p / q) of each feature (V,), with root mean square 1; p and q are its shares of the features that occur in
    rows that are `wanted` (N,) and in the others, with one occurrence added to each (Wang and Manning 2012)."""
    occurs = features > 0
    p, q = (np.asarray(occurs[rows].sum(0)).ravel() + 1.0 for rows in (wanted, ~wanted))
    ratios = np.log((p / p.sum()) / (q / q.sum()))
    return (ratios / max(np.sqrt(np.square(ratios).mean()), 1e-9)).astype(np.float32)


def log_loss(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-probability of the labels (N,), in nats; `predicted` (N, C)."""
    return float(-np.log(np.maximum(predicted[np.arange(len(labels)), labels], LEAST_PROBABILITY)).mean())


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Class probabilities (N, C) from log-odds (N, C), or (N, 1) for two classes, normalized over the classes."""
    positive = np.maximum(1 / (1 + np.exp(np.clip(-scores, -30, 30))), LEAST_PROBABILITY)
    if positive.shape[1] == 1:
        positive = np.hstack([1 - positive, positive]).clip(LEAST_PROBABILITY)
    return positive / positive.sum(1, keepdims=True)


@one_blas_thread()
def choose(
    features: Any,
    dimensions: Sequence[int],
    labels: np.ndarray,
    classes: int,
    seed: int,
    much: bool = False,
    naive_bayes: bool = False,
    deadline: float = float("inf"),
) -> tuple[float, np.ndarray, float]:
    """The regularization with the smallest cross-validated log loss, its out-of-fold probabilities, and that loss.

    `deadline`: the time.perf_counter() after which no other regularization is tried.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    folds = min(FEW_FOLDS if much else FOLDS, len(labels))
    stratified = min(Counter(labels.tolist()).values()) >= folds
    splitter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=seed)
    splits = list(splitter.split(np.zeros(len(labels)), labels))
    best: tuple[float, np.ndarray, float] | None = None
    for strength in FEW_STRENGTHS if much else STRENGTHS:
        if best is not None and time.perf_counter() > deadline:
            break
        found = np.empty((len(labels), classes))
        for train, held_out in splits:
            known = features[train], dimensions, labels[train]
            coefficients, intercepts = fit(*known, classes, strength, seed, naive_bayes)
            found[held_out] = probabilities(features[held_out] @ coefficients.T + intercepts)
        loss = log_loss(found, labels)
        if best is None or loss < best[2]:
            best = strength, found, loss
    assert best is not None
    return best


@one_blas_thread()
def choose_on(
    features: Any,
    labels: np.ndarray,
    unseen: Any,
    unseen_labels: np.ndarray,
    classes: int,
    seed: int,
    much: bool = False,
    naive_bayes: bool = False,
) -> tuple[float, float]:
    """The regularization with the smallest log loss on `unseen` features, and that loss."""
    losses = {}
    for strength in FEW_STRENGTHS if much else STRENGTHS:
        coefficients, intercepts = fit(features, (), labels, classes, strength, seed, naive_bayes)
        losses[strength] = log_loss(probabilities(unseen @ coefficients.T + intercepts), unseen_labels)
    best = min(losses, key=lambda strength: losses[strength])
    return best, losses[best]


def prefixes(coordinates: np.ndarray, dimensions: Sequence[int]) -> np.ndarray:
    """The first d coordinates of (N, D), normalized, for each d of `dimensions`, side by side: (N, sum)."""
    return np.hstack([normalized(coordinates[:, :d]) for d in dimensions])


def normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
