"""A seeded sample of a corpus, in one pass and bounded memory."""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# SentencePiece numbers the characters of a word with 16 bits and skips sentences that it finds too long, so it gets
# stretches of at most this many characters.
STRETCH = 4096


@dataclass(frozen=True)
class Sample:
    """Texts for the trainer, and what was seen while they were drawn."""

    texts: list[str]  # stretches of at most STRETCH characters, in an order that the seed decides
    sampled_bytes: int  # UTF-8
    documents: int
    corpus_bytes: int  # UTF-8, all documents


def draw_sample(documents: Iterable[str], budget: int, seed: int) -> Sample:
    """A sample of about `budget` bytes, equally dense all over the corpus; all of it when it is no larger.

    Each stretch of text draws a random key, and the smallest keys stay (bottom-k sampling): the same documents in the
    same order and the same seed give the same sample, and how long a document is plays no part.
    """
    kept: list[tuple[float, int, str]] = []  # heap of (-key, -size, text): the largest key on top
    held = count = total = 0
    rng = random.Random(seed)
    for document in documents:
        count += 1
        for text in stretches(document):
            size = len(text.encode("utf-8", "replace"))
            heapq.heappush(kept, (-rng.random(), -size, text))
            held += size
            total += size
            while held + kept[0][1] >= budget:
                held += heapq.heappop(kept)[1]
    return Sample([text for _, _, text in sorted(kept, reverse=True)], held, count, total)


def stretches(document: str) -> Iterator[str]:
    """Cut a document after a line break, else before a space, else anywhere; the parts join to the document."""
    start = 0
    while len(document) - start > STRETCH:
        end = start + STRETCH
        half = start + STRETCH // 2
        line, space = document.rfind("\n", half, end) + 1, document.rfind(" ", half, end)
        end = line or (space if space > 0 else end)
        yield document[start:end]
        start = end
    if start < len(document):
        yield document[start:]
