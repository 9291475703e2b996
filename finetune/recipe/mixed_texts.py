"""Texts made of pieces of training texts, for the linear teacher to label.

A few thousand training texts show a student little of what its teacher has learned about each word. Where there is no
unlabelled text, mixed ones show it more: the teacher's function is defined on any text (data augmentation for
distillation, Tang et al. 2019). Pieces keep word order, so that pairs of words stay.
"""

import re
from collections.abc import Sequence

import numpy as np

from .texts import CHARACTERS_PER_SECOND

# Number of training texts that a mixed one has pieces of, equally likely.
PIECES = (1, 2, 2, 3)
# Longest word, in characters, that a piece never begins or ends inside.
WORD = 20


def mixed_count(texts: Sequence[str], unlabelled: int, per_text: int, budget_seconds: float | None) -> int:
    """How many mixed texts a run reads: `per_text` for each training text, if there are fewer unlabelled ones.

    They are at most as long, together, as the unlabelled texts of such a budget.
    """
    if unlabelled >= len(texts):
        return 0
    mean = max(1.0, sum(map(len, texts)) / len(texts))
    return int(min(per_text * len(texts), (budget_seconds or np.inf) * CHARACTERS_PER_SECOND / mean))


def mixed_texts(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Return `count` texts: each is about as long as a random one of `texts`, and has pieces of one to three."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        pieces = int(generator.choice(PIECES))
        length = len(texts[int(generator.integers(len(texts)))]) // pieces
        chosen = generator.integers(len(texts), size=pieces)
        found.append("\n".join(_piece(texts[i], length, generator) for i in chosen))
    return found


def _piece(text: str, length: int, generator: np.random.Generator) -> str:
    """A random part of `text` of about `length` characters, with the whole words at its ends."""
    start = int(generator.integers(max(1, len(text) - length + 1)))
    end = start + length
    before = re.search(r"\S*\Z", text[max(0, start - WORD) : start])
    after = re.match(r"\S*", text[end : end + WORD])
    # Longer ones are scripts without spaces.
    start -= len(before[0]) if before and len(before[0]) < WORD else 0
    end += len(after[0]) if after and len(after[0]) < WORD else 0
    return text[start:end].strip()
