"""Passages that texts share with training data, byte by byte: how much is copied, and the longest passage.

All substrings of one length are compared by polynomial hashes modulo 2^64, which a prefix sum gives for any length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST = 50  # bytes; a shorter passage is not counted as copied
CHUNK = 1 << 22  # bytes of training data compared at once
MOST_CANDIDATES = 1000
BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 1 << 64)
BITS = 22


class Hashes:
    """Hashes of the substrings of `texts`, which are joined by values that never match (`separator` + 256)."""

    def __init__(self, texts: Sequence[bytes], separator: int) -> None:
        end = np.array([256 + separator], dtype=np.uint16)
        parts = [part for text in texts for part in (np.frombuffer(text, np.uint8).astype(np.uint16), end)]
        self.values = np.concatenate(parts) if parts else end
        count = len(self.values) + 1
        ones = np.ones(count, dtype=np.uint64)
        ones[1:] = BASE
        powers = np.cumprod(ones)
        ones[1:] = INVERSE
        self.inverses = np.cumprod(ones)
        self.sums = np.zeros(count, dtype=np.uint64)
        np.cumsum(self.values.astype(np.uint64) * powers[:-1] + powers[:-1], out=self.sums[1:])

    def __len__(self) -> int:
        return len(self.values)

    def of(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the hash of `length` values from each start."""
        return (self.sums[starts + length] - self.sums[starts]) * self.inverses[starts]


@dataclass
class Longest:
    """The longest shared passage: its bytes, its length, and the number of the training document."""

    text: bytes = b""
    document: int = -1


class Passages:
    """The texts to look for in training data. `add` takes the data; `as_dict` says what was found."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = Hashes([text.encode() for text in texts], 0)
        self.longest = Longest()
        self.scanned = self._documents = self._size = 0
        self._waiting: list[bytes] = []
        self._sorted: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._found = np.zeros(max(0, len(self.texts) - LEAST + 1), dtype=bool)
        hashes, _ = self._level(LEAST)
        self._bitmap = np.zeros(1 << BITS, dtype=bool)
        self._bitmap[hashes >> np.uint64(64 - BITS)] = True

    def _level(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (sorted hashes, their starts) of all substrings of a length."""
        if length not in self._sorted:
            starts = np.arange(max(0, len(self.texts) - length + 1))
            hashes = self.texts.of(starts, length)
            order = np.argsort(hashes, kind="stable")
            self._sorted[length] = hashes[order], starts[order]
        return self._sorted[length]

    def _matches(self, hashes: np.ndarray, length: int) -> np.ndarray:
        """Return which of `hashes` some substring of the texts has."""
        known, _ = self._level(length)
        if not len(known):
            return np.zeros(len(hashes), dtype=bool)
        return known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes

    def add(self, document: str) -> None:
        """Compare with one more training document; many are compared at once."""
        self._waiting.append(document.encode())
        self._size += len(self._waiting[-1])
        if self._size >= CHUNK:
            self._scan()

    def _scan(self) -> None:
        documents, self._waiting, self._size = self._waiting, [], 0
        data = Hashes(documents, 1)
        self.scanned += sum(map(len, documents))
        starts = np.arange(max(0, len(data) - LEAST + 1))
        hashes = data.of(starts, LEAST)
        maybe = np.flatnonzero(self._bitmap[hashes >> np.uint64(64 - BITS)])
        starts = maybe[self._matches(hashes[maybe], LEAST)]
        if len(starts):
            known, places = self._level(LEAST)
            self._found[places] |= np.isin(known, hashes[starts])
            self._extend(data, starts, documents)
        self._documents += len(documents)

    def _extend(self, data: Hashes, starts: np.ndarray, documents: list[bytes]) -> None:
        """Double the length while anything matches, then extend the matches that are left value by value."""
        length = LEAST
        while True:
            longer = starts[starts + 2 * length <= len(data)]
            longer = longer[self._matches(data.of(longer, 2 * length), 2 * length)]
            if not len(longer):
                break
            starts, length = longer, 2 * length
        if 2 * length <= len(self.longest.text):
            return
        hashes, places = self._level(length)
        for start in starts[:MOST_CANDIDATES]:
            place = places[np.searchsorted(hashes, data.of(start[None], length))[0]]
            # The passage is shorter than 2 * length values on either side of the match.
            ahead = _equal(data.values[start : start + 2 * length], self.texts.values[place : place + 2 * length])
            low = max(0, start - 2 * length), max(0, place - 2 * length)
            behind = _equal(data.values[low[0] : start][::-1], self.texts.values[low[1] : place][::-1])
            if ahead >= length and ahead + behind > len(self.longest.text):
                passage = data.values[start - behind : start + ahead].astype(np.uint8).tobytes()
                sizes = np.cumsum([len(document) + 1 for document in documents])
                number = self._documents + int(np.searchsorted(sizes, start, side="right"))
                self.longest = Longest(passage, number)

    def as_dict(self) -> dict[str, Any]:
        """Return the share of bytes in passages of at least LEAST bytes, and the longest passage."""
        self._scan()
        steps = np.zeros(len(self.texts) + 1, dtype=np.int64)
        starts = np.flatnonzero(self._found)
        np.add.at(steps, starts, 1)
        np.add.at(steps, starts + LEAST, -1)
        size = int((self.texts.values < 256).sum())
        return {
            "copied": float((np.cumsum(steps) > 0).sum() / max(size, 1)),
            "least_bytes": LEAST,
            "longest_bytes": len(self.longest.text),
            "longest": self.longest.text.decode("utf-8", "replace"),
            "training_document": self.longest.document + 1 if self.longest.text else None,
            "training_bytes": self.scanned,
        }


def _equal(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many first values are equal."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
