"""SentencePiece BPE in C++, multithreaded, with a cache of short units of text: the same ids, many times faster.

Why the ids are the same: BPE merges two neighbours only if the result is a token of the vocabulary (SentencePiece,
src/bpe_model.cc). If no token contains two given adjacent bytes, no merge ever crosses them, and the merges on one side
do not depend on the other. So a text is split at all such places (before a space, around punctuation) into units, and a
unit has the same ids wherever it occurs. This requires a model that leaves the text unchanged and has a token for every
byte: Tokenizer.lossless.
"""

import ctypes
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

SOURCE = Path(__file__).parent / "cpp" / "bpe.cpp"
ENTRIES = 1 << 17  # cache entries per thread, 64 bytes each
# With more threads, the Python code around the encoder takes longer than the encoder.
MOST_THREADS = 8
PADDING = bytes(16)  # the library reads 16 bytes at once, also past the end of a text

pointer, size = ctypes.c_void_p, ctypes.c_int64


class _Vocabulary(ctypes.Structure):
    """Mirrors struct Vocabulary of cpp/bpe.cpp."""

    _fields_ = (
        *((name, pointer) for name in ("bytes", "starts", "scores", "fixed", "alone", "together", "table")),
        *((name, size) for name in ("slots", "tokens", "longest_fixed")),
    )


class BytePairEncoder:
    """Encodes UTF-8 texts to the ids that SentencePiece gives. Thread-safe."""

    def __init__(
        self,
        library: ctypes.CDLL,
        tokens: Sequence[bytes],
        scores: Sequence[float],
        fixed: Collection[int],
        byte_ids: Mapping[int, int],
    ) -> None:
        """`library` is SOURCE, compiled. `tokens` holds the UTF-8 text of each id with plain spaces, empty for ids that
        no text encodes to. `fixed` holds the ids of user-defined symbols, which are matched before any merge.
        `byte_ids` maps each byte to its id."""
        self._encode_texts = library.encode
        self._encode_texts.argtypes = [pointer, pointer, size, ctypes.c_char_p, pointer, size, pointer, pointer]
        library.index_tokens.argtypes = [pointer]
        starts = np.cumsum([0, *map(len, tokens)])
        slots = 1 << (2 * len(tokens)).bit_length()
        # The library reads these arrays, so keep them alive.
        self._arrays = (
            data := np.frombuffer(b"".join(tokens) + PADDING, np.uint8),
            starts,
            np.array(scores, np.float32),
            np.isin(np.arange(len(tokens)), [*fixed]),
            np.array([byte_ids[byte] for byte in range(256)], np.int32),
            np.packbits(_together(data, starts), bitorder="little"),
            np.full((slots, 2), -1, np.int32),
        )
        longest = max((len(tokens[i]) for i in fixed), default=0)
        self._vocabulary = _Vocabulary(*(array.ctypes.data for array in self._arrays), slots, len(tokens), longest)
        library.index_tokens(ctypes.byref(self._vocabulary))
        self._caches: SimpleQueue[np.ndarray] = SimpleQueue()  # caches not in use by any thread

    def encode(self, texts: Sequence[bytes], threads: int) -> list[np.ndarray]:
        """Return the ids (int32) of each text. Texts are UTF-8 without U+2581."""
        ends = np.cumsum([0, *map(len, texts)])
        threads = min(threads, MOST_THREADS, len(texts))
        if threads <= 1:
            return self._encode(texts)
        # Give every thread about the same number of bytes.
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
        # ctypes releases the GIL during this call.
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
    """Return (256 * 256,) bool: whether some token contains these two adjacent bytes, or a character does."""
    inside = np.ones(len(data), bool)
    inside[starts] = False
    second = np.flatnonzero(inside[: starts[-1]])
    together = np.zeros((256, 256), bool)
    together[data[second - 1], data[second]] = True
    together[:, 0x80:0xC0] = True
    return together.reshape(-1)
