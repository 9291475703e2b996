"""Draw a seeded sample of a corpus in one pass and bounded memory."""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Characters per segment, at most. SentencePiece indexes the characters of a word with 16 bits and skips sentences that
# are too long.
SEGMENT = 4096


@dataclass(frozen=True)
class Sample:
    """Texts for the trainer, with counts of the sample and of the corpus."""

    texts: list[str]  # segments of at most SEGMENT characters, in an order that depends on the seed
    sampled_bytes: int  # UTF-8
    documents: int
    corpus_bytes: int  # UTF-8, of all documents


def draw_sample(documents: Iterable[str], budget: int, seed: int) -> Sample:
    """Draw about `budget` bytes uniformly from the corpus, or take all of it if it is smaller.

    Gives each segment of text a random key and keeps the smallest keys (bottom-k sampling). The same documents in the
    same order and the same seed give the same sample. The length of a document does not matter.
    """
    kept: list[tuple[float, int, str]] = []  # heap of (-key, -size, text): the largest key on top
    held = count = total = 0
    rng = random.Random(seed)
    for document in documents:
        count += 1
        for text in segments(document):
            size = len(text.encode("utf-8", "replace"))
            heapq.heappush(kept, (-rng.random(), -size, text))
            held += size
            total += size
            while held + kept[0][1] >= budget:
                held += heapq.heappop(kept)[1]
    return Sample([text for _, _, text in sorted(kept, reverse=True)], held, count, total)


def segments(document: str) -> Iterator[str]:
    """Split a document after a line break, else before a space, else anywhere. The parts join to the document."""
    start = 0
    while len(document) - start > SEGMENT:
        end = start + SEGMENT
        half = start + SEGMENT // 2
        line, space = document.rfind("\n", half, end) + 1, document.rfind(" ", half, end)
        end = line or (space if space > 0 else end)
        yield document[start:end]
        start = end
    if start < len(document):
        yield document[start:]
