"""Find near duplicates with MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., MMDS, chapter 3).

Two texts are near duplicates if their sets of word bigrams have a Jaccard similarity of at least 0.55 (a word in seven
changed, or up to 45 % of the text cut off), or if they are short and share four in five words in the same order.
MinHash only proposes the pairs; each is then compared exactly.
"""

from difflib import SequenceMatcher
from typing import Any

import numpy as np

from .normal_form import word_hashes, word_ngrams

THRESHOLD = 0.55
# Changed words cost a short text most of its bigrams, so that texts up to SHORT words are compared by their words too,
# 2 * common / (both lengths), if their bigrams are not too different.
SHORT, WORD_RATIO, LEAST_SIMILARITY = 100, 0.8, 0.35
# Fewer words are compared for equality only: one word more or less is often all the difference between two classes.
LEAST_WORDS = 10
# Characters read of each text.
MOST_CHARACTERS = 20_000
PERMUTATIONS = 126
# A pair of similarity s becomes a candidate with probability 1 - (1 - s**3)**42: 0.98 at 0.45, 0.04 at 0.1.
BANDS, ROWS = 42, 3
# The estimate from 126 values has a standard deviation of 0.044 at 0.4: skip candidates far below.
LEAST_ESTIMATE = 0.28
# A text stops looking after this many matches, and is then not indexed: a template with 10,000 rows costs no more than
# as many different texts.
ENOUGH_MATCHES = 8


class NearIndex:
    """Texts that have been added, by key, and the search for near duplicates among them.

    Takes about 12 KB of memory per text, and the text itself; 0.4 ms for 1,300 characters.
    """

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH

        # The items are hashed already.
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        self._lsh: Any = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, ROWS))
        self._texts: dict[int, str] = {}
        self._signatures: dict[int, np.ndarray] = {}

    def search(self, normal: str, key: int | None = None) -> list[tuple[int, float]]:
        """Return (key, similarity) of at most ENOUGH_MATCHES near duplicates of a normal form, lowest keys first.

        With a `key`, adds the text afterwards, unless it has that many matches already.
        """
        hashes = _words(normal)
        if len(hashes) < LEAST_WORDS:
            return []
        grams = word_ngrams(hashes, 2)
        sketch = self._empty.copy()
        sketch.update_batch((grams >> np.uint64(32)).tolist())
        found = self._matches(sketch, hashes, grams)
        if key is not None and len(found) < ENOUGH_MATCHES:
            self._lsh.insert(key, sketch, check_duplication=False)
            self._signatures[key] = sketch.hashvalues
            self._texts[key] = normal
        return found

    def _matches(self, sketch: Any, hashes: np.ndarray, grams: np.ndarray) -> list[tuple[int, float]]:
        candidates = sorted(self._lsh.query(sketch))
        if not candidates:
            return []
        signatures = np.stack([self._signatures[key] for key in candidates])
        estimates = (signatures == sketch.hashvalues).mean(axis=1)
        found: list[tuple[int, float]] = []
        for index in np.flatnonzero(estimates >= LEAST_ESTIMATE):
            other = _words(self._texts[candidates[index]])
            similarity = _jaccard(grams, word_ngrams(other, 2))
            if similarity >= THRESHOLD or (similarity >= LEAST_SIMILARITY and _same_words(hashes, other)):
                found.append((candidates[index], similarity))
                if len(found) == ENOUGH_MATCHES:
                    break
        return found


def _words(normal: str) -> np.ndarray:
    return word_hashes(normal[:MOST_CHARACTERS])


def _jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """Jaccard similarity of two sorted sets."""
    if min(len(one), len(two)) < LEAST_SIMILARITY * max(len(one), len(two)):
        return 0.0
    common = len(np.intersect1d(one, two, assume_unique=True))
    return common / (len(one) + len(two) - common)


def _same_words(one: np.ndarray, two: np.ndarray) -> bool:
    if max(len(one), len(two)) > SHORT:
        return False
    return SequenceMatcher(None, one.tolist(), two.tolist(), autojunk=False).ratio() >= WORD_RATIO
