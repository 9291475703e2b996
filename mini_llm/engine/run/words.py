"""Split the ARGS of make into words and print them quoted for bash: python -m mini_llm.engine.run.words "$ARGS".

Spaces separate words and quotation marks hold a word together. A list such as key=[{path: a.txt, weight: 2}] is one
word, and its quotation marks are kept. Nothing else is special, in contrast to a shell: $5 stays $5.
"""

import shlex
import sys
from collections.abc import Iterator

_OPENING, _CLOSING, _QUOTES = "[{", "]}", "\"'"


def split_words(text: str) -> list[str]:
    """The words of `text`. Raises ValueError for a quotation mark or bracket that is not closed."""
    words: list[str] = []
    word: str | None = None
    characters = iter(text)
    for character in characters:
        if character.isspace():
            words += [] if word is None else [word]
            word = None
        elif character in _QUOTES:
            word = (word or "") + _quoted(characters, character)
        elif character in _OPENING and word is not None and word.endswith("="):
            word += character + _bracketed(characters)
        else:
            word = (word or "") + character
    return words if word is None else [*words, word]


def _quoted(characters: Iterator[str], quote: str) -> str:
    """What stands before the closing `quote`; a backslash before a double quotation mark keeps it."""
    text = ""
    for character in characters:
        if character == quote:
            if quote == "'" or not text.endswith("\\"):
                return text
            text = text[:-1]
        text += character
    raise ValueError(f"the quotation mark {quote} is not closed")


def _bracketed(characters: Iterator[str]) -> str:
    """What stands up to the bracket that closes the first one, which has been read."""
    text, depth, quote = "", 1, ""
    for character in characters:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES and (not text or text[-1] in " ,:[{"):
            # Elsewhere it is an apostrophe, as in [don't.txt].
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        text += character
        if not depth:
            return text
    raise ValueError("a bracket of a list is not closed")


if __name__ == "__main__":
    try:
        print(shlex.join(split_words(sys.argv[1])))
    except ValueError as error:
        sys.exit(f"make: ARGS={sys.argv[1]}: {error}")
