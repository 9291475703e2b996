"""Linear document classifiers: logistic regression on TF-IDF, or on LSA coordinates when there is unlabelled text.

They are the baselines that a Transformer has to beat, and the teachers it can learn from. Hyperparameters are chosen by
cross-validation on the training labels alone; no validation or test row is read.

recipe/lsa.py fits those on LSA coordinates.
"""

import time
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

from .recipe.logistic_regression import choose, choose_on, fit, prefixes, probabilities
from .recipe.words import TOKENS

# The tokens of files that were written before scripts without spaces were split.
OLD_TOKENS = r"\w+|[^\w\s]"
TFIDF = "TF-IDF + logistic regression"
NAIVE_BAYES_TFIDF = "TF-IDF with naive Bayes ratios + logistic regression"
# Cross-validation of this much text takes minutes, so it has fewer folds and fewer strengths.
MUCH_TEXT = 8_000_000
# Texts above this count are vectorized without tokens that occur in one text only, half of the vocabulary.
MANY_TEXTS = 2000


class LinearFile(BaseModel):
    """linear.json."""

    name: str
    vocabulary: list[str]
    dimensions: list[int] = []
    # Whether characters of scripts without spaces are tokens of their own.
    splits_unspaced: bool = False
    # Whether a token counts once, however often a text has it.
    binary: bool = False


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
    binary: bool = False

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Class probabilities (len(texts), C)."""
        if not texts:
            return np.zeros((0, max(2, len(self.intercepts))))
        features = self._vectorizer.transform(texts)
        if self.components is not None:
            features = prefixes(np.asarray(features @ self._projection), self.dimensions)
        return probabilities(features @ self.coefficients.T + self.intercepts)

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
            binary=self.binary,
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
            binary=settings.binary,
        )

    @cached_property
    def _projection(self) -> np.ndarray:
        """The components (V, D) in the type and order of SciPy's product, which would copy others for every text."""
        assert self.components is not None
        return np.ascontiguousarray(self.components.T, dtype=np.float32)

    @cached_property
    def _vectorizer(self) -> Any:
        vectorizer = make_vectorizer(
            vocabulary={token: index for index, token in enumerate(self.vocabulary)},
            token_pattern=TOKENS if self.splits_unspaced else OLD_TOKENS,
            binary=self.binary,
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


def fit_tfidf(
    texts: Sequence[str],
    labels: np.ndarray,
    classes: int,
    seed: int = 0,
    held_out: tuple[Sequence[str], np.ndarray] | None = None,
    naive_bayes: bool = False,
    deadline: float = float("inf"),
) -> LinearClassifier:
    """Logistic regression on TF-IDF of words, punctuation and their pairs.

    With `naive_bayes`, features are multiplied by their log-count ratios first (Wang and Manning 2012). The
    regularization is chosen by cross-validation, or by the loss on `held_out` texts and their labels, which takes
    a fifth of the time but gives no out-of-fold probabilities. `deadline`: see choose.
    """
    started = time.perf_counter()
    vectorizer = make_vectorizer(min_df=1 + (len(texts) > MANY_TEXTS))
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:  # no two texts have a token in common
        vectorizer = make_vectorizer()
        features = vectorizer.fit_transform(texts)
    much = sum(map(len, texts)) > MUCH_TEXT
    if held_out is None:
        strength, out_of_fold, loss = choose(features, (), labels, classes, seed, much, naive_bayes, deadline)
    else:
        unseen = vectorizer.transform(held_out[0])
        strength, loss = choose_on(features, labels, unseen, held_out[1], classes, seed, much, naive_bayes)
        out_of_fold = np.zeros((0, classes))
    return LinearClassifier(
        TFIDF if not naive_bayes else NAIVE_BAYES_TFIDF,
        vectorizer.get_feature_names_out().tolist(),
        vectorizer.idf_,
        None,
        *fit(features, (), labels, classes, strength, seed, naive_bayes),
        out_of_fold,
        loss,
        time.perf_counter() - started,
    )


def make_vectorizer(**settings: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    settings = {"token_pattern": TOKENS, **settings}
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32, **settings)
