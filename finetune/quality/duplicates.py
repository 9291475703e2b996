"""Equal and nearly equal texts inside training and across the splits, and the training rows that leak."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..examples import Example
from .near import NearIndex
from .normal_form import normal_form

# What near_duplicates=auto compares: 10,000 reviews of 1,300 characters take 4 s and 90 MB.
ALL_TEXTS, ALL_CHARACTERS = 50_000, 60_000_000
ACROSS_TEXTS, ACROSS_CHARACTERS = 200_000, 120_000_000
# Parts whose texts must not stand in training, in the order in which they are indexed.
SCORED = ("test", "validation")

Coverage = Literal["all", "across", "none"]


class Leak(NamedTuple):
    """A training example whose text stands, exactly or nearly (similarity below 1), in the data of `part`."""

    row: int  # index into the training examples
    part: str
    similarity: float
    other: Example


@dataclass
class Comparison:
    """Which texts are equal (one id per normal form) or near duplicates (pairs of ids).

    `coverage`: near duplicates were sought among all texts, only between scored and training texts, or not at all.
    """

    parts: Mapping[str, Sequence[Example]]
    texts: dict[str, int] = field(default_factory=dict)  # normal form -> id
    ids: dict[str, list[int]] = field(default_factory=dict)  # part -> id of each row
    near: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    coverage: Coverage = "none"

    def leaks(self) -> list[Leak]:
        """Return the training rows whose text stands in the test or validation data, test first."""
        first: dict[str, dict[int, Example]] = {}
        for part in SCORED:
            first[part] = {}
            for text, example in zip(self.ids.get(part, ()), self.parts.get(part, ()), strict=True):
                first[part].setdefault(text, example)
        return [
            leak for row, text in enumerate(self.ids["train"]) if (leak := self._leak(row, text, first)) is not None
        ]

    def _leak(self, row: int, text: int, first: dict[str, dict[int, Example]]) -> Leak | None:
        for part in SCORED:
            if text in first[part]:
                return Leak(row, part, 1.0, first[part][text])
        for part in SCORED:
            # A text of other words only in punctuation has similarity 1.0 too, but another id.
            for other, similarity in self.near.get(text, {}).items():
                if other in first[part]:
                    return Leak(row, part, min(similarity, 0.999), first[part][other])
        return None

    def between(self, train: Sequence[Example], validation: Sequence[Example]) -> "Comparison":
        """Return the comparison of a split of the training examples, from what is known of their texts."""
        parts = {"train": train, "validation": validation}
        ids = {part: [self.texts[normal_form(e.text)] for e in examples] for part, examples in parts.items()}
        return Comparison(parts, self.texts, ids, self.near, self.coverage)

    def duplicates(self, part: str) -> tuple[int, int]:
        """Return (rows that repeat an earlier row, distinct texts that are a near duplicate of another) of a part."""
        own = set(self.ids[part])
        near = sum(any(other in own for other in self.near.get(text, ())) for text in own)
        return len(self.ids[part]) - len(own), near

    def shared(self, part: str, other: str) -> tuple[int, int]:
        """Return how many rows of `part` stand in `other`: (exactly, only nearly)."""
        there = set(self.ids[other])
        exact = near = 0
        for text in self.ids[part]:
            if text in there:
                exact += 1
            elif any(neighbour in there for neighbour in self.near.get(text, ())):
                near += 1
        return exact, near

    def same_texts(self, part: str, other: str) -> bool:
        """Return whether two parts hold the same set of texts: one is the other under another name."""
        return bool(self.ids.get(part)) and set(self.ids[part]) == set(self.ids.get(other, ()))


def compare(parts: Mapping[str, Sequence[Example]], near: Literal["auto"] | bool = "auto") -> Comparison:
    """Find equal and nearly equal texts among `parts`: "train" and, where there are, "test" and "validation".

    near: compare all texts (True), none (False), or as many as take a few seconds per 10,000 texts ("auto"). Texts
    shorter than ten words have no near duplicates, and of longer ones the first 20,000 characters count.
    """
    found = Comparison(parts)
    known = found.texts
    for part in (*SCORED, "train"):
        found.ids[part] = [known.setdefault(normal_form(example.text), len(known)) for example in parts.get(part, ())]
    found.coverage = _coverage(known, near)
    if found.coverage == "none":
        return found
    index = NearIndex()
    scored = len({text for part in SCORED for text in found.ids[part]})
    for normal, text in known.items():  # ids count from 0 in this order: test, validation, training
        indexed = text < scored or found.coverage == "all"
        for other, similarity in index.search(normal, text if indexed else None):
            found.near[text][other] = found.near[other][text] = similarity
    return found


def _coverage(texts: Mapping[str, int], near: Literal["auto"] | bool) -> Coverage:
    if near != "auto":
        return "all" if near else "none"
    characters = sum(map(len, texts))
    if len(texts) <= ALL_TEXTS and characters <= ALL_CHARACTERS:
        return "all"
    return "across" if len(texts) <= ACROSS_TEXTS and characters <= ACROSS_CHARACTERS else "none"


def conflicts(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the groups of equal texts that have different labels, largest first: one example per label."""
    groups: dict[str, dict[int, Example]] = defaultdict(dict)
    rows: Counter[str] = Counter()
    for example in examples:
        normal = normal_form(example.text)
        groups[normal].setdefault(example.label, example)
        rows[normal] += 1
    return [list(groups[text].values()) for text, _ in rows.most_common() if len(groups[text]) > 1]
