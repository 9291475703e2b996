"""Decode token ids one at a time."""

import codecs
from collections.abc import Callable, Iterable

TokenBytes = Callable[[int, bool], bytes | None]


class StreamDecoder:
    """Decodes ids as they arrive. Text returned by `push` is final and never ends in the middle of a character.

    The results of all `push` calls and of `flush`, joined, equal `decode(ids)`. Invalid UTF-8 becomes U+FFFD.
    `token_bytes(token_id, first)` returns the UTF-8 bytes of one id, or None for special ids and ids outside the
    vocabulary; `first` is true while only such ids came before (some tokenizers strip the space there).
    """

    def __init__(self, token_bytes: TokenBytes):
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True

    def push(self, token_id: int) -> str:
        """Add an id. Return the text that is now complete; it is empty while a character is incomplete."""
        data = self._token_bytes(int(token_id), self._first)
        if data is None:
            return ""
        self._first = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Return the rest of an incomplete character as U+FFFD, and reset the decoder."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._first = True
        return rest


def decode(ids: Iterable[int], token_bytes: TokenBytes) -> str:
    """Return the text of `ids`, with the same rules as StreamDecoder."""
    parts: list[bytes] = []
    first = True
    for token_id in ids:
        data = token_bytes(int(token_id), first)
        if data is not None:
            parts.append(data)
            first = False
    return b"".join(parts).decode("utf-8", "replace")
