"""Linear document classifiers: logistic regression on TF-IDF, or on LSA coordinates when there is unlabelled text.

They are the baselines that a Transformer has to beat, and the teachers it can learn from. Hyperparameters are chosen by
cross-validation on the training labels alone; no validation or test row is read.

LSA (Deerwester et al. 1990) is a truncated SVD of the TF-IDF matrix. Fitted on unlabelled text, its leading coordinates
say what a document is about, and a few labels are enough to use them. How many coordinates are best depends on the
number of labels, and too few labels cannot tell: the log-odds of models with 10 to 100 coordinates are averaged.
"""

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from mini_llm.engine.errors import DataError
from mini_llm.engine.run.files import open_regular, write_atomic, write_json
from mini_llm.engine.run.state import describe, read_state

from .recipe.words import TOKENS

# The tokens of files that were written before scripts without spaces were split.
OLD_TOKENS = r"\w+|[^\w\s]"
# Inverse regularization of the logistic regression.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# Coordinates of the averaged LSA models, for up to MANY_TEXTS training texts and for more.
DIMENSIONS, DIMENSIONS_FOR_MANY = (10, 20, 50, 100), (100,)
FOLDS = 5
# Cross-validation of this much text takes minutes, so it has fewer folds and fewer strengths.
MUCH_TEXT, FEW_FOLDS, FEW_STRENGTHS = 8_000_000, 3, (3.0, 10.0)
# LSA needs far more texts than coordinates.
LEAST_TEXTS = 1000
# The SVD of 50,000 reviews takes a minute on two cores.
MOST_UNLABELLED = 50_000
MOST_FEATURES = 60_000
# Texts above this count are vectorized without tokens that occur in one text only, half of the vocabulary.
MANY_TEXTS = 2000
LEAST_PROBABILITY = 1e-4


class LinearFile(BaseModel):
    """linear.json."""

    name: str
    vocabulary: list[str]
    dimensions: list[int] = []
    # Whether characters of scripts without spaces are tokens of their own.
    splits_unspaced: bool = False


@dataclass
class LinearClassifier:
    """Logistic regression, one class against the rest, on TF-IDF or on the LSA coordinates made of it.

    vocabulary: tokens and token pairs in the order of the features. idf: (V,). components: (D, V), or None without LSA.
    dimensions: the features of LSA are the first d coordinates, normalized, for each of these d, side by side (F).
    coefficients: (C or 1, V or F) and intercepts (C or 1,); one row for two classes.
    out_of_fold: probabilities of the training texts (N, C) by models that were not trained on them; log_loss: of those.
    """

    name: str
    vocabulary: list[str]
    idf: np.ndarray
    components: np.ndarray | None
    coefficients: np.ndarray
    intercepts: np.ndarray
    out_of_fold: np.ndarray
    log_loss: float = float("nan")
    seconds: float = 0.0
    dimensions: tuple[int, ...] = ()
    splits_unspaced: bool = True

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Class probabilities (len(texts), C)."""
        if not texts:
            return np.zeros((0, max(2, len(self.intercepts))))
        features = self._vectorizer.transform(texts)
        if self.components is not None:
            features = _prefixes(np.asarray(features @ self.components.T), self.dimensions)
        return _probabilities(features @ self.coefficients.T + self.intercepts)

    def save(self, directory: Path) -> None:
        """Write linear.json and linear.safetensors. `out_of_fold` is not written."""
        from safetensors.numpy import save

        arrays = {"idf": self.idf, "coefficients": self.coefficients, "intercepts": self.intercepts}
        if self.components is not None:
            arrays["components"] = self.components
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {
            name: np.ascontiguousarray(array, dtype=np.float16 if name == "components" else np.float32)
            for name, array in arrays.items()
        }
        write_atomic(directory / "linear.safetensors", save(arrays))
        settings = LinearFile(
            name=self.name,
            vocabulary=self.vocabulary,
            dimensions=list(self.dimensions),
            splits_unspaced=self.splits_unspaced,
        )
        write_json(directory / "linear.json", settings.model_dump())

    @classmethod
    def load(cls, directory: Path) -> "LinearClassifier | None":
        """What `save` wrote, or None if linear.json is missing or damaged. Raises DataError for damaged arrays."""
        settings = read_state(directory / "linear.json", LinearFile)
        if settings is None:
            return None
        arrays = read_arrays(directory / "linear.safetensors")
        components = arrays.get("components")
        try:
            idf, coefficients, intercepts = arrays["idf"], arrays["coefficients"], arrays["intercepts"]
            features = len(settings.vocabulary)
            # Files of older runs have one number of coordinates, all of them.
            dimensions = tuple(settings.dimensions) or (() if components is None else (len(components),))
            width = features if components is None else sum(dimensions)
            shapes = [idf.shape, coefficients.shape, *([] if components is None else [components.shape])]
            if shapes != [
                (features,),
                (len(intercepts), width),
                *([] if components is None else [(max(dimensions), features)]),
            ]:
                raise ValueError(f"shapes {shapes} for {features} tokens")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{directory / 'linear.safetensors'}: damaged ({error})") from None
        return cls(
            settings.name,
            settings.vocabulary,
            idf,
            components,
            coefficients,
            intercepts,
            np.zeros((0, 0)),
            dimensions=dimensions,
            splits_unspaced=settings.splits_unspaced,
        )

    @cached_property
    def _vectorizer(self) -> Any:
        vectorizer = _vectorizer(
            vocabulary={token: index for index, token in enumerate(self.vocabulary)},
            token_pattern=TOKENS if self.splits_unspaced else OLD_TOKENS,
        )
        vectorizer.idf_ = self.idf
        return vectorizer


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises DataError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        with open_regular(path) as file:
            return load(file.read())
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({describe(error)})") from None


def fit_tfidf(texts: Sequence[str], labels: np.ndarray, classes: int, seed: int = 0) -> LinearClassifier:
    """Logistic regression on TF-IDF of words, punctuation and their pairs; regularization by cross-validation."""
    started = time.perf_counter()
    vectorizer = _vectorizer(min_df=1 + (len(texts) > MANY_TEXTS))
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:  # no two texts have a token in common
        vectorizer = _vectorizer()
        features = vectorizer.fit_transform(texts)
    much = sum(map(len, texts)) > MUCH_TEXT
    strength, out_of_fold, loss = _choose(features, (), labels, classes, seed, much)
    return LinearClassifier(
        "TF-IDF + logistic regression",
        vectorizer.get_feature_names_out().tolist(),
        vectorizer.idf_,
        None,
        *_fit(features, (), labels, classes, strength, seed),
        out_of_fold,
        loss,
        time.perf_counter() - started,
    )


def fit_lsa(
    texts: Sequence[str], labels: np.ndarray, classes: int, unlabelled: Sequence[str], seed: int = 0
) -> LinearClassifier | None:
    """Logistic regression on LSA coordinates of unlabelled and training texts together; None with too few texts, or
    tokens that several texts have.

    The regularization is chosen by cross-validation on the labels.
    """
    from sklearn.decomposition import TruncatedSVD

    started = time.perf_counter()
    everything = [*unlabelled[:MOST_UNLABELLED], *texts]
    if len(everything) < LEAST_TEXTS:
        return None
    vectorizer = _vectorizer(min_df=3, max_features=MOST_FEATURES)
    try:
        matrix = vectorizer.fit_transform(everything)
    except ValueError:  # no token is in three texts
        return None
    largest = min(max(DIMENSIONS), matrix.shape[1] - 1)
    if largest < 1:
        return None
    svd = TruncatedSVD(largest, n_iter=3, random_state=seed).fit(matrix)
    # As they are saved, so that a loaded model gives the same probabilities.
    components = svd.components_.astype(np.float16).astype(np.float32)
    coordinates = np.asarray(matrix[-len(texts) :] @ components.T)
    wanted = DIMENSIONS if len(texts) <= MANY_TEXTS else DIMENSIONS_FOR_MANY
    dimensions = tuple(sorted({min(d, largest) for d in wanted}))
    features = _prefixes(coordinates, dimensions)
    strength, out_of_fold, loss = _choose(features, dimensions, labels, classes, seed)
    return LinearClassifier(
        "LSA + logistic regression",
        vectorizer.get_feature_names_out().tolist(),
        vectorizer.idf_,
        components,
        *_fit(features, dimensions, labels, classes, strength, seed),
        out_of_fold,
        loss,
        time.perf_counter() - started,
        dimensions,
    )


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-probability of the labels, in nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], LEAST_PROBABILITY)).mean())


def _vectorizer(**settings: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    settings = {"token_pattern": TOKENS, **settings}
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32, **settings)


def _fit(
    features: Any, dimensions: Sequence[int], labels: np.ndarray, classes: int, strength: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and intercepts. A class without a label gets a probability near 0.

    `dimensions`: the widths of feature blocks, each of which has a model of its own; their log-odds are averaged.
    """
    if not dimensions:
        return _fit_one(features, labels, classes, strength, seed)
    blocks = np.split(features, np.cumsum(dimensions)[:-1], axis=1)
    fits = [_fit_one(block, labels, classes, strength, seed) for block in blocks]
    return np.hstack([fit[0] for fit in fits]) / len(fits), np.mean([fit[1] for fit in fits], axis=0)


def _fit_one(
    features: Any, labels: np.ndarray, classes: int, strength: float, seed: int
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
        model = LogisticRegression(C=strength, solver="liblinear", random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features, wanted)
        coefficients[row], intercepts[row] = model.coef_[0], model.intercept_[0]
    return coefficients, intercepts


def _probabilities(scores: np.ndarray) -> np.ndarray:
    positive = np.maximum(1 / (1 + np.exp(np.clip(-scores, -30, 30))), LEAST_PROBABILITY)
    if positive.shape[1] == 1:
        positive = np.hstack([1 - positive, positive]).clip(LEAST_PROBABILITY)
    return positive / positive.sum(1, keepdims=True)


def _choose(
    features: Any, dimensions: Sequence[int], labels: np.ndarray, classes: int, seed: int, much: bool = False
) -> tuple[float, np.ndarray, float]:
    """The regularization with the smallest cross-validated log loss, its out-of-fold probabilities, and that loss."""
    from sklearn.model_selection import KFold, StratifiedKFold

    folds = min(FEW_FOLDS if much else FOLDS, len(labels))
    stratified = min(Counter(labels.tolist()).values()) >= folds
    splitter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=seed)
    splits = list(splitter.split(np.zeros(len(labels)), labels))
    best: tuple[float, np.ndarray, float] | None = None
    for strength in FEW_STRENGTHS if much else STRENGTHS:
        found = np.empty((len(labels), classes))
        for train, held_out in splits:
            coefficients, intercepts = _fit(features[train], dimensions, labels[train], classes, strength, seed)
            found[held_out] = _probabilities(features[held_out] @ coefficients.T + intercepts)
        loss = log_loss(found, labels)
        if best is None or loss < best[2]:
            best = strength, found, loss
    assert best is not None
    return best


def _prefixes(coordinates: np.ndarray, dimensions: Sequence[int]) -> np.ndarray:
    """The first d coordinates of (N, D), normalized, for each d of `dimensions`, side by side: (N, sum)."""
    return np.hstack([_normalized(coordinates[:, :d]) for d in dimensions])


def _normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
