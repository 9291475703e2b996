"""What drift is measured on: lengths, words, tokens and embeddings of texts, and what the model says about them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from mini_llm.corpus.tables import column_settings, iter_rows
from mini_llm.engine.errors import DataError
from mini_llm.stages import load

from ..decoder import prefix_id
from ..embeddings import embed
from ..likelihood import score_windows
from ..masked import masked_rows, predict_rows
from ..subject import Subject
from ..texts import Document, iter_texts
from ..windows import rolling_windows

WORD = re.compile(r"\w+")
BATCH = 32


@dataclass
class Texts:
    """A sample of texts, with their labels if they have some."""

    documents: list[Document]
    labels: list[str] | None = None


@dataclass
class Features:
    """Features of the reference texts, then of the new texts: one row per text.

    predictions: numbers by name, such as the loss of a decoder. classes: the predicted class of a classifier.
    correct: whether that is the label, where labels exist.
    """

    characters: np.ndarray
    words: csr_matrix
    tokens: csr_matrix
    embeddings: np.ndarray
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    classes: np.ndarray | None = None
    correct: np.ndarray | None = None


def sample_texts(path: str, text: str, label: str | None, most: int, seed: int) -> Texts:
    """Return at most `most` texts of `path`, drawn with `seed` by reservoir sampling (Vitter 1985, algorithm R).

    Raises DataError for fewer than two texts, or a row without a label.
    """
    generator = np.random.default_rng(seed)
    kept: list[tuple[Document, str | None]] = []
    for seen, row in enumerate(_rows(path, text, label), start=1):
        slot = len(kept) if len(kept) < most else int(generator.integers(seen))
        if slot < most:
            kept[slot : slot + 1] = [row]
    if len(kept) < 2:
        raise DataError(f"{path}: {len(kept)} texts; drift needs at least two documents or rows in each file")
    return Texts([document for document, _ in kept], [str(value) for _, value in kept] if label else None)


def _rows(path: str, text: str, label: str | None) -> Iterator[tuple[Document, str | None]]:
    if label is None:
        yield from ((document, None) for document in iter_texts(path, text))
        return
    with column_settings({text: "--text COLUMN", label: "--label COLUMN"}):
        for number, row in enumerate(iter_rows(path, None, [text, label]), start=1):
            if row[text] is None or row[label] is None:
                raise DataError(f"{path} row {number:,}: '{text}' or '{label}' is empty. Fill the row in, or remove it")
            yield Document(str(row[text]), f"{path} row {number:,}"), str(row[label])


def count_matrix(rows: Sequence[Sequence[Any]]) -> csr_matrix:
    """Return how often each text has each item, (texts, different items) in float32."""
    columns: dict[Any, int] = {}
    indices = [columns.setdefault(item, len(columns)) for row in rows for item in row]
    starts = np.cumsum([0, *map(len, rows)])
    shape = (len(rows), max(1, len(columns)))
    return csr_matrix((np.ones(len(indices), np.float32), indices, starts), shape=shape)


def read_features(subject: Subject, reference: Texts, new: Texts, seed: int, batch_tokens: int) -> Features:
    """Return the features of all texts, the reference first."""
    documents = [*reference.documents, *new.documents]
    ids = [subject.tokenizer.encode(document.text) for document in documents]
    found = Features(
        np.array([len(document.text) for document in documents], dtype=float),
        count_matrix([WORD.findall(document.text.lower()) for document in documents]),
        count_matrix(ids),
        embed(subject, ids),
    )
    if subject.kind == "causal":
        prefix = prefix_id(subject)
        windows = [next(rolling_windows(row or [prefix], prefix, subject.context)) for row in ids]
        scores = list(score_windows(subject.model, windows, batch_tokens))  # ty: ignore[invalid-argument-type]
        found.predictions["loss per token"] = np.array([-s.log_probability.mean() for s in scores])
        found.predictions["confidence"] = np.array([s.confidence.mean() for s in scores])
    elif subject.kind == "masked":
        rows = [masked_rows(subject, document, i, seed)[:1] for i, document in enumerate(documents)]
        values = [scores[0] for scores in predict_rows(subject, [row for part in rows for row in part], batch_tokens)]
        found.predictions["masked loss"] = np.array([-value.mean() for value in values])
    elif subject.kind == "classifier":
        classify(subject.directory, reference, new, found)
    return found


def classify(directory: Path, reference: Texts, new: Texts, found: Features) -> None:
    """Add the classes, their probabilities and, where labels exist, whether they are right."""
    classifier = load("finetune", "predict").Classifier(directory)
    texts = [document.text for document in (*reference.documents, *new.documents)]
    probabilities = classifier.calibrated(texts, BATCH)
    found.classes = probabilities.argmax(-1)
    found.predictions["confidence"] = probabilities.max(-1)
    if reference.labels is not None and new.labels is not None:
        labels = [*reference.labels, *new.labels]
        unknown = sorted(set(labels) - set(classifier.names))
        if unknown:
            raise DataError(
                f"'{unknown[0]}' is not a label of {directory} ({', '.join(classifier.names[:10])}). Name the column "
                "of the labels: --label COLUMN"
            )
        found.correct = np.array([classifier.names[c] == label for c, label in zip(found.classes, labels, strict=True)])
