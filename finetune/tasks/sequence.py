"""Tasks on whole texts, or pairs of texts: one window a row, read by a sequence classifier."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mini_llm.engine.errors import DataError

from ..quality.labels import unseen_labels
from ..recipe.words import fit_tfidf_features
from .encoder import Encoder, Window
from .task import Row, Task
from .values import group_of, text_of

CHARACTERS = 64_000_000  # of training text that the baselines read, at most
Features = Callable[[Sequence[Row]], Any]


class SequenceTask(Task):
    """A task whose rows are texts or pairs of texts, with one label each."""

    def parse(self, values: dict[str, Any], place: str) -> Row | str:
        columns = self.columns
        text, pair = text_of(values, columns.text, place), None
        if text is None:
            return columns.text
        if columns.pair is not None and (pair := text_of(values, columns.pair, place)) is None:
            return columns.pair
        target = self.target(values.get(columns.label), f"{place}: '{columns.label}'")
        if target is None:
            return columns.label
        return Row(place, text, target, pair, group=group_of(values, self.config))

    @abstractmethod
    def target(self, value: Any, place: str) -> Any:
        """Return the label of a row, None for null. Raises DataError naming `place`."""

    def encoded(self, target: Any) -> Any:
        """Return what the objective compares the logits with."""
        return np.int64(target)

    def windows(self, rows: Sequence[Row], encoder: Encoder) -> list[Window]:
        firsts = encoder.tokenizer.encode_batch([row.text for row in rows])
        if self.columns.pair is None:
            windows = [Window(i, encoder.text(ids)) for i, ids in enumerate(firsts)]
        else:
            seconds = encoder.tokenizer.encode_batch([row.pair or "" for row in rows])
            pairs = enumerate(zip(firsts, seconds, strict=True))
            windows = [Window(i, *encoder.pair(*ids)) for i, ids in pairs]
        for row, window in zip(rows, windows, strict=True):
            window.labels = None if row.target is None else self.encoded(row.target)
        return windows


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, float64 (..., C)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def check_known(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], path: str, train: str) -> None:
    """Raise DataError for labels that are not among `names`; `rows`: (place, labels)."""
    known = set(names)
    unseen: dict[str, list[Any]] = {}
    for place, labels in rows:
        for label in labels:
            if label not in known:
                unseen.setdefault(label, []).append(place.removeprefix(f"{path} row "))
    if unseen:
        raise unseen_labels(unseen, names, path, train)


def tfidf_features(rows: Sequence[Row]) -> Features:
    """Return a function from rows to TF-IDF features of words and word pairs, fitted on `rows`.

    For pairs: those of both texts, their product and their absolute difference. Raises DataError for texts without
    words.
    """
    from scipy.sparse import hstack

    taken, characters = [], 0
    for row in rows:
        characters += len(row.text) + len(row.pair or "")
        if characters > CHARACTERS and taken:
            break
        taken += [row.text] if row.pair is None else [row.text, row.pair]
    try:
        vectorizer, _ = fit_tfidf_features(taken)
    except ValueError as error:
        raise DataError(f"the training texts have no words to make TF-IDF features from ({error})") from None

    def features(rows: Sequence[Row]) -> Any:
        first = vectorizer.transform([row.text for row in rows])
        if not rows or rows[0].pair is None:
            return first
        second = vectorizer.transform([row.pair or "" for row in rows])
        return hstack([first, second, first.multiply(second), abs(first - second)]).tocsr()

    return features
