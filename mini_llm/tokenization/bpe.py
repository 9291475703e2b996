"""The ids of SentencePiece BPE many times faster, on all cores: in C++, with a cache of short stretches of text.

Why they are the same: BPE joins two neighbours only where the whole is a piece of the vocabulary (SentencePiece,
src/bpe_model.cc). Where no piece holds two bytes side by side, nothing is ever joined across them, and what is joined
on one side does not depend on the other. A text is cut at all such places (before a space, around punctuation) into
units, and a unit has the same ids wherever it stands. That takes a model that leaves the text as it is, and in which
every byte has a piece: Tokenizer.lossless.
"""

import ctypes
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

SOURCE = Path(__file__).parent / "cpp" / "bpe.cpp"
# Of the cache of each thread, with 64 bytes each.
ENTRIES = 1 << 17
# Beyond it, what Python does with the texts takes longer than encoding them.
MOST_THREADS = 8
# Bytes read at once by the library, beyond a text's end too.
PADDING = bytes(16)

pointer, size = ctypes.c_void_p, ctypes.c_int64


class _Vocabulary(ctypes.Structure):
    """Vocabulary of cpp/bpe.cpp."""

    _fields_ = (
        *((name, pointer) for name in ("bytes", "starts", "scores", "fixed", "alone", "together", "table")),
        *((name, size) for name in ("slots", "pieces", "longest_fixed")),
    )


class BytePairEncoder:
    """Exact ids of texts in UTF-8. Safe to share between threads."""

    def __init__(
        self,
        library: ctypes.CDLL,
        pieces: Sequence[bytes],
        scores: Sequence[float],
        fixed: Collection[int],
        byte_ids: Mapping[int, int],
    ) -> None:
        """`library`: SOURCE compiled. `pieces`: the text of each id with spaces as such, empty where no text gives it.
        `fixed`: ids of symbols that stand as they are wherever a text has them. `byte_ids`: the ids of bytes."""
        self._encode_texts = library.encode
        self._encode_texts.argtypes = [pointer, pointer, size, ctypes.c_char_p, pointer, size, pointer, pointer]
        library.index_pieces.argtypes = [pointer]
        starts = np.cumsum([0, *map(len, pieces)])
        slots = 1 << (2 * len(pieces)).bit_length()
        # Kept, since the library reads them.
        self._arrays = (
            data := np.frombuffer(b"".join(pieces) + PADDING, np.uint8),
            starts,
            np.array(scores, np.float32),
            np.isin(np.arange(len(pieces)), [*fixed]),
            np.array([byte_ids[byte] for byte in range(256)], np.int32),
            np.packbits(_together(data, starts), bitorder="little"),
            np.full((slots, 2), -1, np.int32),
        )
        longest = max((len(pieces[i]) for i in fixed), default=0)
        self._vocabulary = _Vocabulary(*(array.ctypes.data for array in self._arrays), slots, len(pieces), longest)
        library.index_pieces(ctypes.byref(self._vocabulary))
        # Those that no thread uses now.
        self._caches: SimpleQueue[np.ndarray] = SimpleQueue()

    def encode(self, texts: Sequence[bytes], threads: int) -> list[np.ndarray]:
        """The ids (int32) of each text, given as UTF-8 without U+2581."""
        ends = np.cumsum([0, *map(len, texts)])
        threads = min(threads, MOST_THREADS, len(texts))
        if threads <= 1:
            return self._encode(texts)
        # Shares of about as many bytes.
        edges = np.searchsorted(ends, np.linspace(0, ends[-1], threads + 1)[1:-1]).tolist()
        with ThreadPoolExecutor(threads) as pool:
            shares = pool.map(self._encode, [texts[i:j] for i, j in pairwise([0, *edges, len(texts)])])
            return [ids for share in shares for ids in share]

    def _encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        data = b"".join([*texts, PADDING])
        ends, counts = np.cumsum([*map(len, texts)], dtype=np.int64), np.empty(len(texts), np.int64)
        ids = np.empty(len(data), np.int32)
        try:
            cache = self._caches.get_nowait()
        except Empty:
            cache = np.zeros((ENTRIES, 64), np.uint8)
        # The library runs without the interpreter's lock.
        self._encode_texts(
            ctypes.byref(self._vocabulary),
            cache.ctypes.data,
            len(cache),
            data,
            ends.ctypes.data,
            len(texts),
            ids.ctypes.data,
            counts.ctypes.data,
        )
        self._caches.put(cache)
        borders = np.cumsum([0, *counts.tolist()]).tolist()
        ids = ids[: borders[-1]].copy()
        return [ids[start:stop] for start, stop in pairwise(borders)]


def _together(data: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(256 * 256,) bool: whether a piece holds these two bytes side by side, or they are inside a character."""
    inside = np.ones(len(data), bool)
    inside[starts] = False
    second = np.flatnonzero(inside[: starts[-1]])
    together = np.zeros((256, 256), bool)
    together[data[second - 1], data[second]] = True
    together[:, 0x80:0xC0] = True
    return together.reshape(-1)
