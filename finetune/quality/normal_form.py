"""The form in which texts and labels are compared: case, white space and Unicode form do not count."""

import re
import unicodedata
import zlib

import numpy as np

# Scripts written without spaces: each of their characters is a word (Thai, Lao, Burmese, Khmer, kana, CJK ideographs).
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def normal_form(text: str) -> str:
    """Return `text` in NFC and case-folded, with single spaces: equal texts have equal normal forms."""
    if text.isascii():
        return " ".join(text.lower().split())
    # Case folding can undo the composition ("\u0130" folds to two characters), so compose again.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def word_hashes(normal: str) -> np.ndarray:
    """Return one uint64 hash per word of a normal form, (N,); punctuation is no word."""
    return np.fromiter((zlib.crc32(word.encode("utf-8", "replace")) for word in WORD.findall(normal)), dtype=np.uint64)


def word_ngrams(hashes: np.ndarray, size: int) -> np.ndarray:
    """Return the distinct hashes of `size` adjacent words, sorted uint64; empty for fewer words."""
    count = len(hashes) - size + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(size):  # mixed after every word, so that each one reaches all bits
        grams = (grams + hashes[offset : offset + count] + np.uint64(1)) * MULTIPLIER
        grams ^= grams >> np.uint64(32)
    return np.unique(grams)
