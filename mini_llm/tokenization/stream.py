"""Ids one by one, text piece by piece."""

import codecs
from collections.abc import Callable, Iterable

PieceBytes = Callable[[int, bool], bytes | None]


class StreamDecoder:
    """Turn ids into text as they come: what `push` returns never changes later and never ends in half a character.

    The texts of all pushes and of `flush`, joined, equal `decode(ids)`. Bytes that are not valid UTF-8 become U+FFFD.
    `piece_bytes(token_id, first)` gives the UTF-8 bytes of one id, or None for specials and ids outside the vocabulary;
    `first` says that only such ids came before it (some tokenizers strip the space there).
    """

    def __init__(self, piece_bytes: PieceBytes):
        self._piece_bytes = piece_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True

    def push(self, token_id: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        data = self._piece_bytes(int(token_id), self._first)
        if data is None:
            return ""
        self._first = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left of an incomplete character, as U+FFFD; the decoder is then as new."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._first = True
        return rest


def decode(ids: Iterable[int], piece_bytes: PieceBytes) -> str:
    """The text of `ids`, by the same rule as StreamDecoder."""
    parts: list[bytes] = []
    first = True
    for token_id in ids:
        data = piece_bytes(int(token_id), first)
        if data is not None:
            parts.append(data)
            first = False
    return b"".join(parts).decode("utf-8", "replace")
