"""Decode the ids of a tokenizer.json one at a time, exactly as its decoder decodes them together."""

from collections.abc import Callable, Iterable
from typing import Any

CLEAN_UP = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
# Decoders that treat each token alone, except for the first one and for runs of byte tokens.
LOCAL = {"WordPiece", "Metaspace", "ByteFallback", "Fuse", "Strip", "Replace", "Sequence"}


def clean_up(text: str) -> str:
    """Remove spaces before punctuation and English endings, as clean_up_tokenization_spaces of transformers does."""
    for old, new in CLEAN_UP:
        text = text.replace(old, new)
    return text


class UnitStream:
    """Decodes ids as they arrive; StreamDecoder documents the interface.

    A unit is one token, or a run of byte tokens: the ByteFallback decoder turns a run that is not valid UTF-8 into one
    U+FFFD for each byte, so nothing of a run is known before its end. `unit_text(ids, first)` returns the text of a
    unit, with `first` for the first one. `is_byte(id)` returns None for ids without text.
    """

    def __init__(self, unit_text: Callable[[tuple[int, ...], bool], str], is_byte: Callable[[int], bool | None]):
        self._unit_text, self._is_byte = unit_text, is_byte
        self._run: tuple[int, ...] = ()
        self._first = True

    def push(self, token_id: int) -> str:
        is_byte = self._is_byte(token_id)
        if is_byte is None:
            return ""
        if is_byte:
            self._run = (*self._run, token_id)
            return ""
        return self._end_run() + self._text((token_id,))

    def flush(self) -> str:
        rest = self._end_run()
        self._first = True
        return rest

    def _end_run(self) -> str:
        run, self._run = self._run, ()
        return self._text(run) if run else ""

    def _text(self, unit: tuple[int, ...]) -> str:
        first, self._first = self._first, False
        return self._unit_text(unit, first)


class WholeStream:
    """Returns the whole text at the end, for decoders of which no part of the text is final before."""

    def __init__(self, decode: Callable[[Iterable[int]], str]):
        self._decode = decode
        self._ids: list[int] = []

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return ""

    def flush(self) -> str:
        ids, self._ids = self._ids, []
        return self._decode(ids)


class CleanStream:
    """Applies clean_up to the text of another stream.

    All its patterns begin with a space and have at most four characters, and it removes only spaces. So the text up to
    three characters that are not spaces does not depend on what follows.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self._held = ""

    def push(self, token_id: int) -> str:
        self._held += self._stream.push(token_id)
        cut = next((i for i in range(len(self._held), 2, -1) if " " not in self._held[i - 3 : i]), 0)
        done, self._held = self._held[:cut], self._held[cut:]
        return clean_up(done)

    def flush(self) -> str:
        rest, self._held = self._held + self._stream.flush(), ""
        return clean_up(rest)
