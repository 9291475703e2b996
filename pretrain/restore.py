"""The built-in text-to-text task: give lower-cased words without punctuation their capitals and marks back."""

import re
from collections.abc import Iterator
from typing import Literal

from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.documents import iter_documents
from mini_llm.engine.errors import DataError

SHORTEST, LONGEST = 25, 160  # characters of a sentence
FEWEST_WORDS = 5
MOST_PAIRS = 300_000
# A sentence ends at its mark, at the end of a paragraph or docstring, or at markup.
_BOUNDARY = re.compile(r'(?<=[.!?])\s+|\s*\n\s*\n\s*|"""|<[^<>]*>')
_PROSE = re.compile(r"[A-Z][\w ,;:'\"()\-]*[.!?]")


def restore_pairs(config: CorpusConfig, part: Literal["train", "validation"]) -> list[tuple[str, str]]:
    """(words, sentence) of the documents of one part, each sentence once, the first MOST_PAIRS of them.

    Raises DataError when the corpus holds no prose.
    """
    found: dict[str, str] = {}
    for text in iter_documents(config, part):
        for sentence in sentences(text):
            found.setdefault(sentence, strip(sentence))
        if len(found) >= MOST_PAIRS:
            break
    if not found:
        raise DataError(
            f"pairs.task=restore: the {part} text of the corpus holds no sentence of {SHORTEST} to {LONGEST} "
            "characters that begins with a capital and ends in a mark. Use text in prose"
        )
    return [(words, sentence) for sentence, words in found.items()][:MOST_PAIRS]


def sentences(text: str) -> Iterator[str]:
    """The sentences of prose in `text`, without those that hold code, addresses or other signs."""
    for piece in _BOUNDARY.split(text):
        sentence = " ".join(piece.split())
        long_enough = len(sentence) >= SHORTEST and sentence.count(" ") + 1 >= FEWEST_WORDS
        if long_enough and len(sentence) <= LONGEST and "_" not in sentence and _PROSE.fullmatch(sentence):
            yield sentence


def strip(sentence: str) -> str:
    """The words alone, in lower case: "Don't go, Ann!" -> "dont go ann"."""
    return " ".join(re.sub(r"[^\w\s]", " ", sentence.lower().replace("'", "")).split())
