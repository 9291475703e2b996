"""Linear document classifiers: logistic regression on TF-IDF, or on LSA coordinates when there is unlabelled text.

They are the baselines that a Transformer has to beat, and the teachers it can learn from. Hyperparameters are chosen by
cross-validation on the training labels alone; no validation or test row is read.

LSA (Deerwester et al. 1990) is a truncated SVD of the TF-IDF matrix. Fitted on unlabelled text, its leading coordinates
say what a document is about, and a few labels are enough to use them.
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

from mini_llm.engine.run.files import read_json, write_atomic, write_json

# Words, and single punctuation marks: '?' and '!' tell questions and opinions apart.
TOKENS = r"\w+|[^\w\s]"
# Inverse regularization of the logistic regression.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
DIMENSIONS = (20, 50, 100)
FOLDS = 5
# LSA needs far more texts than coordinates.
LEAST_TEXTS = 1000
# The SVD of 20,000 reviews takes a quarter of a minute on two cores.
MOST_UNLABELLED = 20_000
MOST_FEATURES = 200_000
# Texts above this count are vectorized without tokens that occur in one text only, half of the vocabulary.
MANY_TEXTS = 2000
LEAST_PROBABILITY = 1e-4


@dataclass
class LinearClassifier:
    """Logistic regression, one class against the rest, on TF-IDF or on the LSA coordinates made of it.

    vocabulary: tokens and token pairs in the order of the features. idf: (V,). components: (D, V), or None without LSA.
    coefficients: (C or 1, V or D) and intercepts (C or 1,); one row for two classes.
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

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Class probabilities (len(texts), C)."""
        features = self._vectorizer.transform(texts)
        if self.components is not None:
            features = _normalized(np.asarray(features @ self.components.T))
        return _probabilities(features @ self.coefficients.T + self.intercepts)

    def save(self, directory: Path) -> None:
        """Write linear.json and linear.safetensors. `out_of_fold` is not written."""
        from safetensors.numpy import save

        arrays = {"idf": self.idf, "coefficients": self.coefficients, "intercepts": self.intercepts}
        if self.components is not None:
            arrays["components"] = self.components
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
        write_atomic(directory / "linear.safetensors", save(arrays))
        write_json(directory / "linear.json", {"name": self.name, "vocabulary": self.vocabulary})

    @classmethod
    def load(cls, directory: Path) -> "LinearClassifier | None":
        """What `save` wrote, or None if there is nothing."""
        from safetensors.numpy import load_file

        settings = read_json(directory / "linear.json")
        if not isinstance(settings, dict):
            return None
        arrays = load_file(directory / "linear.safetensors")
        return cls(
            settings["name"],
            settings["vocabulary"],
            arrays["idf"],
            arrays.get("components"),
            arrays["coefficients"],
            arrays["intercepts"],
            np.zeros((0, 0)),
        )

    @cached_property
    def _vectorizer(self) -> Any:
        vectorizer = _vectorizer(vocabulary={token: index for index, token in enumerate(self.vocabulary)})
        vectorizer.idf_ = self.idf
        return vectorizer


def fit_tfidf(texts: Sequence[str], labels: np.ndarray, classes: int, seed: int = 0) -> LinearClassifier:
    """Logistic regression on TF-IDF of words, punctuation and their pairs; regularization by cross-validation."""
    started = time.perf_counter()
    vectorizer = _vectorizer(min_df=1 + (len(texts) > MANY_TEXTS))
    features = vectorizer.fit_transform(texts)
    strength, out_of_fold, loss = _choose(features, labels, classes, seed)
    return LinearClassifier(
        "TF-IDF + logistic regression",
        vectorizer.get_feature_names_out().tolist(),
        vectorizer.idf_,
        None,
        *_fit(features, labels, classes, strength, seed),
        out_of_fold,
        loss,
        time.perf_counter() - started,
    )


def fit_lsa(
    texts: Sequence[str], labels: np.ndarray, classes: int, unlabelled: Sequence[str], seed: int = 0
) -> LinearClassifier | None:
    """Logistic regression on LSA coordinates of unlabelled and training texts together; None with too few texts.

    The number of coordinates and the regularization are chosen by cross-validation on the labels.
    """
    from sklearn.decomposition import TruncatedSVD

    started = time.perf_counter()
    everything = [*unlabelled[:MOST_UNLABELLED], *texts]
    if len(everything) < LEAST_TEXTS:
        return None
    vectorizer = _vectorizer(min_df=3, max_features=MOST_FEATURES)
    matrix = vectorizer.fit_transform(everything)
    svd = TruncatedSVD(min(max(DIMENSIONS), matrix.shape[1] - 1), n_iter=3, random_state=seed).fit(matrix)
    coordinates = svd.transform(matrix[-len(texts) :])
    best: tuple[float, int, float, np.ndarray] | None = None
    for dimensions in DIMENSIONS:
        strength, out_of_fold, loss = _choose(_normalized(coordinates[:, :dimensions]), labels, classes, seed)
        if best is None or loss < best[0]:
            best = loss, dimensions, strength, out_of_fold
    assert best is not None
    loss, dimensions, strength, out_of_fold = best
    return LinearClassifier(
        f"LSA ({dimensions}) + logistic regression",
        vectorizer.get_feature_names_out().tolist(),
        vectorizer.idf_,
        svd.components_[:dimensions],
        *_fit(_normalized(coordinates[:, :dimensions]), labels, classes, strength, seed),
        out_of_fold,
        loss,
        time.perf_counter() - started,
    )


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-probability of the labels, in nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], LEAST_PROBABILITY)).mean())


def _vectorizer(**settings: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKENS, dtype=np.float32, **settings)


def _fit(features: Any, labels: np.ndarray, classes: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and intercepts. A class without a label gets a probability near 0."""
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


def _choose(features: Any, labels: np.ndarray, classes: int, seed: int) -> tuple[float, np.ndarray, float]:
    """The regularization with the smallest cross-validated log loss, its out-of-fold probabilities, and that loss."""
    from sklearn.model_selection import KFold, StratifiedKFold

    folds = min(FOLDS, len(labels))
    stratified = min(Counter(labels.tolist()).values()) >= folds
    splitter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=seed)
    splits = list(splitter.split(np.zeros(len(labels)), labels))
    best: tuple[float, np.ndarray, float] | None = None
    for strength in STRENGTHS:
        found = np.empty((len(labels), classes))
        for train, held_out in splits:
            coefficients, intercepts = _fit(features[train], labels[train], classes, strength, seed)
            found[held_out] = _probabilities(features[held_out] @ coefficients.T + intercepts)
        loss = log_loss(found, labels)
        if best is None or loss < best[2]:
            best = strength, found, loss
    assert best is not None
    return best


def _normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
