"""Scores of named entities. The entities of tags are those that the seqeval library finds, as conlleval does."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .bootstrap import ratio


class Entity(NamedTuple):
    """Words `first` to `last`, both included."""

    kind: str
    first: int
    last: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of BIO tags. An I-X that follows no X begins an entity, as in conlleval and seqeval."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [Entity(*found) for found in get_entities(list(tags))]


def repaired(tags: Sequence[str]) -> list[str]:
    """Return `tags` with B-X for every I-X that follows neither B-X nor I-X."""
    return [
        f"B-{tag[2:]}" if tag.startswith("I-") and before[2:] != tag[2:] else tag
        for before, tag in pairwise(["O", *tags])
    ]


def statistics(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], kinds: Sequence[str]) -> np.ndarray:
    """Return what the scores need of each text: (N, 3 K + 2) for K kinds of entities.

    Found, true and predicted entities of each kind; words with the right tag, and words.
    """
    index = {kind: k for k, kind in enumerate(kinds)}
    table = np.zeros((len(truth), 3, len(kinds)))
    words = np.zeros((len(truth), 2))
    for row, (labels, tags) in enumerate(zip(truth, predicted, strict=True)):
        real, guessed = set(entities(labels)), set(entities(tags))
        for place, group in enumerate((real & guessed, real, guessed)):
            for entity in group:
                table[row, place, index[entity.kind]] += 1
        words[row] = sum(a == b for a, b in zip(labels, tags, strict=True)), len(labels)
    return np.concatenate([table.reshape(len(truth), -1), words], 1)


def scores(means: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (R,) from means (R, 3 K + 2): F1, precision and recall of all entities together."""
    found, real, guessed = (part.sum(1) for part in np.split(means[:, :-2], 3, axis=1))
    return {
        "entity_f1": ratio(2 * found, real + guessed),
        "entity_precision": ratio(found, guessed),
        "entity_recall": ratio(found, real),
        "word_accuracy": ratio(means[:, -2], means[:, -1]),
    }
