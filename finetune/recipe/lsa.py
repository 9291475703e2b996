"""Logistic regression on LSA coordinates, which unlabelled text teaches.

LSA (Deerwester et al. 1990) is a truncated SVD of the TF-IDF matrix. Its leading coordinates say what a document is
about, and a few labels are enough to use them. How many coordinates are best depends on the number of labels, and too
few labels cannot tell: the log-odds of models with 10 to 100 coordinates are averaged.

The leading coordinates follow the most frequent tokens. Where words of opinion matter more than what all texts are
about, the tokens of more than every fiftieth text are better left out; where a few words name the topic, they are not.
Cross-validation decides.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..linear import MANY_TEXTS, MUCH_TEXT, LinearClassifier
from .logistic_regression import choose, fit, prefixes
from .words import TOKENS

# Largest share of the texts that a token may be in, to choose from.
LARGEST_SHARES = (0.02, 0.2)
# Coordinates of the averaged models, for up to MANY_TEXTS training texts and for more.
DIMENSIONS, DIMENSIONS_FOR_MANY = (10, 20, 50, 100), (100,)
# LSA needs far more texts than coordinates.
LEAST_TEXTS = 1000
# The SVD of 50,000 reviews takes a quarter of a minute.
MOST_UNLABELLED = 50_000
MOST_FEATURES = 60_000
# Texts that a token must be in.
LEAST_COUNT = 3


def fit_lsa(
    texts: Sequence[str],
    labels: np.ndarray,
    classes: int,
    unlabelled: Sequence[str],
    seed: int = 0,
    deadline: float = float("inf"),
) -> LinearClassifier | None:
    """Logistic regression on LSA coordinates of unlabelled and training texts together; None with too few texts, or
    tokens that several texts have.

    Regularization and the largest share of texts that a token may be in are chosen by cross-validation on the labels,
    while the time.perf_counter() is before `deadline`.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    started = time.perf_counter()
    everything = [*unlabelled[:MOST_UNLABELLED], *texts]
    if len(everything) < LEAST_TEXTS:
        return None
    vectorizer = CountVectorizer(
        token_pattern=TOKENS, ngram_range=(1, 2), min_df=LEAST_COUNT, binary=True, dtype=np.float32
    )
    try:
        counts = vectorizer.fit_transform(everything)
    except ValueError:  # no token is in LEAST_COUNT texts
        return None
    vocabulary = vectorizer.get_feature_names_out()
    frequencies = np.asarray(counts.sum(0)).ravel()
    much = sum(map(len, texts)) > MUCH_TEXT
    best: LinearClassifier | None = None
    for share in LARGEST_SHARES:
        if best is not None and time.perf_counter() > deadline:
            break
        allowed = np.flatnonzero(frequencies <= share * len(everything))
        columns = np.sort(allowed[np.argsort(-frequencies[allowed], kind="stable")[:MOST_FEATURES]])
        found = _fit(counts[:, columns], vocabulary[columns].tolist(), labels, classes, seed, much, deadline)
        if found is not None and (best is None or found.log_loss < best.log_loss):
            best = found
    if best is not None:
        best.seconds = time.perf_counter() - started
    return best


def _fit(
    counts: Any, vocabulary: list[str], labels: np.ndarray, classes: int, seed: int, much: bool, deadline: float
) -> LinearClassifier | None:
    """Fit to the counts (N, V) of all texts, whose last rows have the `labels`; None with less than two tokens."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    largest = min(max(DIMENSIONS), len(vocabulary) - 1)
    if largest < 1:
        return None
    weighting = TfidfTransformer()
    matrix = weighting.fit_transform(counts)
    svd = TruncatedSVD(largest, n_iter=3, random_state=seed).fit(matrix)
    # As they are saved, so that a loaded model gives the same probabilities.
    components = svd.components_.astype(np.float16).astype(np.float32)
    coordinates = np.asarray(matrix[-len(labels) :] @ components.T)
    wanted = DIMENSIONS if len(labels) <= MANY_TEXTS else DIMENSIONS_FOR_MANY
    dimensions = tuple(sorted({min(d, largest) for d in wanted}))
    features = prefixes(coordinates, dimensions)
    strength, out_of_fold, loss = choose(features, dimensions, labels, classes, seed, much, deadline=deadline)
    return LinearClassifier(
        "LSA + logistic regression",
        vocabulary,
        weighting.idf_,
        components,
        *fit(features, dimensions, labels, classes, strength, seed),
        out_of_fold,
        loss,
        dimensions=dimensions,
        binary=True,
    )
