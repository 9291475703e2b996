"""Encoding with a memo of short stretches of text, in numpy: the ids of SentencePiece several times faster.

Why it is exact: BPE joins two neighbours only where the whole is a piece of the vocabulary (SentencePiece,
src/bpe_model.cc). Where no piece holds two bytes side by side, nothing is ever joined across them, and what is joined
on one side does not depend on the other. A text is cut at all such places (before a space, around punctuation) into
units, and a unit has the same ids wherever it stands. That takes a model that leaves the text as it is, and in which
every byte has a piece: Tokenizer.lossless.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from threading import Lock

import numpy as np

KEY_BYTES = 16  # units up to this length are remembered in arrays
LONG_BYTES = 64  # longer ones up to this in a dict; those beyond (base64, Chinese) seldom come back
SLOTS = 1 << 19
MOST_IDS = 1 << 21  # ids remembered (8 MB) before all is forgotten: what comes now may be another kind of text
MOST_OTHERS = 1 << 16
CHUNK = 1 << 16  # units, or bytes, worked on at once: arrays that stay in the cache
SEGMENT = 512  # bytes of unknown units encoded as one string: SentencePiece slows down on long ones

_LOW, _HIGH = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd multipliers of xxHash
_ROW = np.dtype(f"V{KEY_BYTES}")


class Memo:
    """Ids of units seen before: a direct-mapped table from the bytes of a unit to a stretch of `_ids`.

    At most about 30 MB, beside what one batch takes (about 25 bytes per byte of text).
    """

    _turn = Lock()  # of the class, so that a memo can be pickled: one thread at a time

    def __init__(self, pieces: Sequence[bytes | None], encode: Callable[[list[str]], list[np.ndarray]]) -> None:
        """`pieces`: the text of each id with spaces as such, None for those that no text gives. `encode`: exact ids
        of each string."""
        self._encode_strings = encode
        self._lengths = np.array([len(piece or b"") for piece in pieces], np.int64)
        together = np.zeros((256, 256), bool)
        for piece in pieces:
            data = np.frombuffer(piece or b"", np.uint8)
            together[data[:-1], data[1:]] = True
        used = together.any(0) | together.any(1)
        # A character that no longer piece holds, to stand between units; None if a vocabulary uses all of them. Nor may
        # one hold NUL, which ends a key: then a unit with NUL is NUL alone.
        marks = [bytes([byte]) for byte in range(1, 32) if not used[byte] and not used[0]]
        self._mark = marks[0] if marks else None
        together[:, 0x80:0xC0] = True  # inside a character
        self._apart = ~together.reshape(-1)
        sizes = np.arange(KEY_BYTES + 2)
        masks = (np.arange(KEY_BYTES) < sizes[:, None]) * np.uint8(255)
        self._masks = masks.view(_ROW).reshape(-1)
        self._keys = np.zeros(SLOTS, _ROW)
        self._places = np.zeros(SLOTS, np.int64)  # of each slot's unit in _ids: start << 32 | count; 0: empty slot
        self._ids = np.zeros(1 << 16, np.int32)
        self._forget()

    @property
    def usable(self) -> bool:
        """Whether this vocabulary allows it."""
        return self._mark is not None

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The ids (int32) of each text, given as UTF-8 without U+2581."""
        with self._turn:
            return self._encode_texts(texts)

    def _encode_texts(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        if self._used > MOST_IDS:
            self._forget()
        data = b"".join([*texts, bytes(KEY_BYTES)])
        edges = np.cumsum([0, *map(len, texts)])
        if edges[-1] == 0:
            return [np.empty(0, np.int32) for _ in texts]
        starts = self._cut(data, edges)
        sizes = np.diff(starts, append=edges[-1])
        rows = np.ndarray((edges[-1],), _ROW, data, strides=(1,))  # the 16 bytes from each byte on
        places = np.empty(len(starts), np.int64)
        start, step = 0, min(CHUNK, 1024 + self._used)  # little at once while little is known
        while start < len(starts):
            stop = start + step
            places[start:stop] = self._find(data, rows, starts[start:stop], sizes[start:stop])
            start, step = stop, min(CHUNK, 2 * step)
        ids, ends = self._gather(places)
        borders = np.concatenate([[0], ends])[np.searchsorted(starts, edges)].tolist()
        return [ids[start:stop] for start, stop in pairwise(borders)]

    def _cut(self, data: bytes, edges: np.ndarray) -> np.ndarray:
        """Where units start: (n,) int64."""
        flat = np.frombuffer(data, np.uint8, edges[-1])
        cut = np.empty(len(flat), bool)
        for i in range(1, len(flat), CHUNK):
            second = flat[i : i + CHUNK]
            pairs = flat[i - 1 : i - 1 + len(second)].astype(np.intp)
            pairs <<= 8
            pairs |= second
            cut[i : i + CHUNK] = self._apart[pairs]
        cut[edges[:-1][np.diff(edges) > 0]] = True
        return np.flatnonzero(cut)

    def _find(self, data: bytes, rows: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The places of these units in _ids; unknown ones are encoded and remembered."""
        short = np.minimum(sizes, KEY_BYTES + 1)
        # take() would copy all of `rows` first, which overlap.
        words = rows[starts].view(np.uint64)
        words &= self._masks.take(short).view(np.uint64)
        keys, slots = words.view(_ROW), _slots(words.reshape(-1, 2))
        fits = short <= KEY_BYTES
        places = self._known(keys, slots) * fits
        unknown = np.flatnonzero(places == 0)
        keys, slots, fits = keys[unknown], slots[unknown], fits[unknown]
        found = self._known(keys, slots ^ 1) * fits  # each unit may lie in either of two slots
        new = np.flatnonzero(found == 0)
        if len(new):
            chosen = unknown[new]
            units = [data[i:j] for i, j in zip(starts[chosen].tolist(), (starts + sizes)[chosen].tolist(), strict=True)]
            found[new] = self._learn(units)
            self._keep(units, keys[new], slots[new], found[new], fits[new])
        places[unknown] = found
        return places

    def _known(self, keys: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """The places of these keys where they are in these slots, else 0."""
        equal = self._keys.take(slots).view(np.uint64) == keys.view(np.uint64)
        return self._places.take(slots) * (equal.view(np.uint16) == 0x0101)

    def _keep(
        self, units: list[bytes], keys: np.ndarray, slots: np.ndarray, places: np.ndarray, fits: np.ndarray
    ) -> None:
        """Remember new units: in one of their slots while one is free, else in the dict."""
        for slot in (slots, slots ^ 1):
            free = np.flatnonzero(fits & (self._places[slot] == 0))
            # Of several units for one slot the last is written, in both arrays.
            self._keys[slot[free]] = keys[free]
            self._places[slot[free]] = places[free]
            fits = fits & (self._known(keys, slot) == 0)
        if len(self._others) > MOST_OTHERS:
            self._others.clear()
        longer = np.fromiter(map(len, units), np.int64, len(units))
        rest = np.flatnonzero(fits | ((longer > KEY_BYTES) & (longer <= LONG_BYTES)))
        self._others.update((units[i], place) for i, place in zip(rest.tolist(), places[rest].tolist(), strict=True))

    def _learn(self, units: list[bytes]) -> np.ndarray:
        """Places of units that are in no slot."""
        places = np.fromiter((self._others.get(unit, 0) for unit in units), np.int64, len(units))
        new = np.flatnonzero(places == 0)
        units = [units[i] for i in new.tolist()]
        if not units:
            return places
        # Each followed by a mark, about SEGMENT bytes to a string.
        ends = np.cumsum([len(unit) + 1 for unit in units])
        turns = [0, *np.flatnonzero(np.diff(ends // SEGMENT, prepend=0)).tolist(), len(units)]
        marked = [unit + self._mark for unit in units]
        strings = [b"".join(marked[i:j]).decode() for i, j in pairwise(turns) if i < j]
        ids = np.concatenate(self._encode_strings(strings))
        # A piece gives its own bytes back, so that the marks are where the lengths say.
        stops = np.searchsorted(np.cumsum(self._lengths[ids]), ends)
        counts = np.diff(stops, prepend=-1) - 1
        places[new] = (self._used + stops - counts) << 32 | counts
        self._append(ids)
        return places

    def _append(self, ids: np.ndarray) -> None:
        while self._used + len(ids) > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[self._used : self._used + len(ids)] = ids
        self._used += len(ids)

    def _gather(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the ids of all units one after another, where the ids of each end)."""
        counts = places & 0xFFFFFFFF
        ends = np.cumsum(counts)
        shifts = (places >> 32) - (ends - counts)
        ids = np.empty(ends[-1], np.int32)
        for i in range(0, len(places), CHUNK):
            part = slice(i, i + CHUNK)
            first, last = ends[i] - counts[i], ends[part][-1]
            index = np.repeat(shifts[part], counts[part])
            index += np.arange(first, last)
            self._ids.take(index, out=ids[first:last], mode="clip")
        return ids, ends

    def _forget(self) -> None:
        self._places[:] = 0
        self._others: dict[bytes, int] = {}
        self._ids = self._ids[: 1 << 16].copy()
        self._used = 1  # place 0 says "empty slot"


def _slots(words: np.ndarray) -> np.ndarray:
    """The slot of each key: (n, 2) uint64 -> (n,) int64."""
    mixed = words[:, 0] * _LOW
    mixed ^= words[:, 1] * _HIGH
    mixed ^= mixed >> np.uint64(29)
    mixed *= _LOW
    mixed >>= np.uint64(64 - (SLOTS.bit_length() - 1))
    return mixed.view(np.int64)
