"""The built-in text-to-text task: restore the capitals and punctuation of lower-cased words."""

import re
from collections.abc import Iterator
from typing import Literal

from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.documents import iter_documents
from mini_llm.engine.errors import DataError

SHORTEST, LONGEST = 25, 160  # characters of a sentence
FEWEST_WORDS = 5
MOST_PAIRS = 300_000
# A sentence ends after . ! or ?, at the end of a paragraph or docstring, or at markup.
_BOUNDARY = re.compile(r'(?<=[.!?])\s+|\s*\n\s*\n\s*|"""|<[^<>]*>')
_PROSE = re.compile(r"[A-Z][\w ,;:'\"()\-]*[.!?]")


def restore_pairs(config: CorpusConfig, part: Literal["train", "validation"]) -> list[tuple[str, str]]:
    """Return the first MOST_PAIRS pairs (words, sentence) of one part of the corpus, each sentence once.

    Raises DataError if the corpus holds no prose.
    """
    found: dict[str, str] = {}
    for text in iter_documents(config, part):
        for sentence in sentences(text):
            found.setdefault(sentence, strip(sentence))
        if len(found) >= MOST_PAIRS:
            break
    if not found:
        raise DataError(
            f"pairs.task=restore: the {part} text of the corpus has no sentence of {SHORTEST} to {LONGEST} "
            "characters that starts with a capital and ends with . ! or ?. Use prose"
        )
    return [(words, sentence) for sentence, words in found.items()][:MOST_PAIRS]


def sentences(text: str) -> Iterator[str]:
    """Yield the prose sentences of `text`; skip those with code, addresses or other symbols."""
    for part in _BOUNDARY.split(text):
        sentence = " ".join(part.split())
        long_enough = len(sentence) >= SHORTEST and sentence.count(" ") + 1 >= FEWEST_WORDS
        if long_enough and len(sentence) <= LONGEST and "_" not in sentence and _PROSE.fullmatch(sentence):
            yield sentence


def strip(sentence: str) -> str:
    """Return the words in lower case, without punctuation: "Don't go, Ann!" -> "dont go ann"."""
    return " ".join(re.sub(r"[^\w\s]", " ", sentence.lower().replace("'", "")).split())
