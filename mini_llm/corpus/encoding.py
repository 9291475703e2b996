"""Guess the encoding of bytes that are not valid UTF-8, to suggest it in messages; nothing is decoded by a guess.

charset-normalizer finds the encodings in which the bytes can be read. Its own ranking mixes up encodings of one script
on short texts (cp1251 and koi8_r, Shift-JIS and cp949), so that its candidates and the usual encodings are ranked here
by how much the decoded text looks like words: no symbols or capitals within them, one script per word, and letters
that are frequent in a language.
"""

import codecs
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time
READ = 1 << 14  # bytes from which the encoding is guessed
# If two read a text equally well, the first is suggested.
USUAL = (
    *("cp1252", "cp1251", "cp932", "gb18030", "big5", "cp949", "euc_jp", "cp1250", "koi8_r", "cp1253", "cp1254"),
    *("iso8859_2", "cp866", "koi8_u", "cp1255", "cp1256", "cp874", "cp1257", "iso8859_5", "iso8859_7"),
)
RARE = ("mac_roman", "cp850", "iso8859_15")
# Frequent letters: Latin, Cyrillic, Greek, Hebrew, Arabic, Thai, hiragana, Chinese (simplified, traditional), Korean.
FREQUENT = set(
    "\u00e9\u00e8\u00e0\u00ea\u00e7\u00f9\u00f2\u00e2\u00ee\u00f4\u00fb\u00e1\u00ed\u00f3\u00fa\u00f1\u00e4\u00f6"
    "\u00fc\u00df\u00e5\u00e6\u00e3\u00f5\u0105\u0119\u0142\u015b\u017c\u017a\u0107\u0144\u0159\u011b\u010d\u016f"
    "\u0165\u010f\u0148\u0151\u0171\u011f\u0131\u015f\u0130\u00ec\u0161\u017e\u2019\u201c\u201d\u2013\u2014\u20ac\u2026"
    "\u043e\u0435\u0430\u0438\u043d\u0442\u0441\u0440\u0432\u043b\u043a\u043c\u0434\u043f\u0443"
    "\u03b1\u03bf\u03b9\u03b5\u03c4\u03c3\u03bd\u03b7\u03c5\u03c1\u03ba\u03c0\u03bb"
    "\u05d9\u05d5\u05d4\u05dc\u05d0\u05ea\u05e8\u05de\u05d1\u05e9\u0627\u0644\u064a\u0645\u0648\u0646\u0631\u062a"
    "\u0628\u0629\u0639\u062f\u0633\u0641\u0e32\u0e19\u0e23\u0e2d\u0e01\u0e40\u0e07\u0e21\u0e22\u0e25\u0e27\u0e14"
    "\u306e\u306b\u306f\u3092\u305f\u304c\u3067\u3066\u3068\u3057\u3044\u308c\u3055\u306a\u308b\u304b\u3082\u3089"
    "\u7684\u4e00\u662f\u4e0d\u4e86\u5728\u4eba\u6709\u6211\u4ed6\u8fd9\u4eec\u6765\u4e0a\u5927\u4e3a\u548c\u56fd"
    "\u5730\u5230\u8bf4\u65f6\u8981\u5c31\u51fa\u4f1a\u53ef\u4e5f\u4f60\u5bf9\u751f\u80fd\u5f97\u4e0b\u5e74\u8fc7"
    "\u597d\u770b\u5f88\u9019\u500b\u5011\u4f86\u70ba\u570b\u8aaa\u6642\u6703\u5c0d\u904e\u767c\u96fb"
    "\uc774\ub2e4\ub294\uc744\uc758\uc5d0\ud558\uace0\uc9c0\uac00\uae30\ub3c4\uc740\ud55c\uc0ac\ub9ac\uc778\ub85c"
    "\uc790\uc11c\ub2c8\ub97c\ub4e4\uc218\uc788\uc5b4\uc694\ub098\ud574"
)
# Letters of cp1252 that only Icelandic uses, in place of Turkish and Polish ones.
ICELANDIC = set("\u00f0\u00fe\u00d0\u00de\u00fd\u00dd")
# The sets of frequent characters within larger encodings.
FREQUENT_SETS = {"gb18030": "gb2312", "cp949": "euc_kr", "cp932": "shift_jis"}


def check_encoding(name: str | None) -> str | None:
    """Return `name`. Raises ValueError if it is not the name of a text encoding."""
    if name is not None:
        try:
            known = codecs.lookup(name)._is_text_encoding
        except (LookupError, ValueError):
            known = False
        if not known:
            raise ValueError(f"unknown encoding '{name}'; Python's names are such as cp1252 or utf-16")
    return name


def suggest_encoding(file: str, option: str) -> str:
    """Return advice on a file whose text holds U+FFFD: the value of `option` to set, or that the damage is older."""
    path = Path(file)
    if not path.is_file() or path.suffix in (".gz", ".zst", ".bz2", ".xz", ".parquet"):
        return f"Repair the source, or name its encoding: {option}=NAME"
    data = _invalid_part(path)
    if data is None:
        return "The file itself is valid UTF-8, so the damage is older: restore the text from its origin"
    if _share_of_utf8(data) > 0.5:
        return "Most of the file is UTF-8, so parts in another encoding were added to it: convert those parts to UTF-8"
    best = guess_encoding(data)
    if best is None:
        return f"Name the encoding of the file: {option}=cp1252, for example"
    return f"The file looks like {best} ({_sample(data, best)}): set {option}={best}"


def _share_of_utf8(data: bytes) -> float:
    """Return the share of the bytes beyond ASCII that are valid UTF-8."""
    beyond = sum(byte >= 0x80 for byte in data)
    valid = sum(byte >= 0x80 for byte in data.decode("utf-8", "ignore").encode())
    return valid / max(1, beyond)


def guess_encoding(data: bytes) -> str | None:
    """Return Python's name of the encoding in which `data` looks most like text, or None if there is none."""
    from charset_normalizer import from_bytes

    found = [match.encoding for match in from_bytes(data)]
    scores = {}
    for encoding in dict.fromkeys([*USUAL, *RARE, *found]):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(data)
        except (UnicodeDecodeError, LookupError):
            continue
        scores[encoding] = _strangeness(text, encoding)
    return min(scores, key=scores.__getitem__, default=None)


def _strangeness(text: str, encoding: str) -> float:
    """Return a number that is the smaller, the more `text` looks like words of a language that `encoding` is for."""
    characters = [char for char in text if not char.isascii()]
    total = 0.0 if encoding in USUAL else 0.3 * len(characters)
    for char in characters:
        category = unicodedata.category(char)
        if category[0] == "C":
            total += 3
        elif category[0] not in "LMP" or "\uff61" <= char <= "\uff9f":  # half-width kana are single bytes
            total += 1
        elif char.lower() in FREQUENT:
            total -= 0.5 * len(char.encode(encoding))
        elif char in ICELANDIC and encoding == "cp1252":
            total += 0.4
        elif encoding in FREQUENT_SETS and not _encodes(char, FREQUENT_SETS[encoding]):
            total += 0.5
        elif encoding == "gb18030" and char.encode(encoding)[0] >= 0xD8:  # the rarer half of GB 2312
            total += 0.3
    for one, two in pairwise(text):
        if not (one.isascii() and two.isascii()):
            total += _strange_pair(one, two)
    kana = sum("\u3041" <= char <= "\u30fe" for char in characters)
    if encoding in ("cp932", "euc_jp"):
        total += 0.6 * len(characters) * (kana < 0.05 * len(characters))
    elif encoding in ("gb18030", "big5", "cp949"):
        total += kana
    # Per byte, so that encodings of one and of two bytes per character compare.
    return total / max(1, len(text.encode(encoding, "replace")) - sum(map(str.isascii, text)))


def _strange_pair(one: str, two: str) -> float:
    if _is_letter(one) and _is_letter(two):
        scripts = {_script(one), _script(two)}
        mixed = len(scripts) > 1 and not scripts <= {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}
        mixed = mixed or (scripts == {"LATIN"} and not one.isascii() and not two.isascii())
        return 0.7 * mixed + (1.0 if one.islower() and two.isupper() else 0.2 * (one.isupper() and two.isupper()))
    # A sign of the upper half between letters, such as "f\u00a6r".
    signs = [char for char in (one, two) if not char.isascii() and unicodedata.category(char) in ("Po", "Ps", "Sm")]
    return 0.7 * bool(signs and (one.isalpha() or two.isalpha()))


def _is_letter(char: str) -> bool:
    return char.isalpha() or unicodedata.category(char) == "Mn"


def _script(char: str) -> str:
    return unicodedata.name(char, "").partition(" ")[0]


def _encodes(char: str, encoding: str) -> bool:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _invalid_part(path: Path) -> bytes | None:
    """Return the lines around the first bytes that are not valid UTF-8, or None if all are valid."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as opened:
        while data := opened.read(CHUNK):
            try:
                decoder.decode(data)
            except UnicodeDecodeError as error:
                start = max(0, min(error.start, len(data)) - READ // 2)
                # From the start of a line, so that no character of two bytes is cut.
                start = data.rfind(b"\n", 0, start) + 1 if data.rfind(b"\n", 0, start) > start - READ else start
                return data[start : start + READ]
    return None


def _sample(data: bytes, encoding: str) -> str:
    """Return a few decoded words, for the user to judge the guess by, in quotation marks."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(data)
    words = re.findall(r"\w*[^\W\x00-\x7f]\w*", text)
    return "it reads '" + " ".join(dict.fromkeys(words[:20]))[:40].strip() + "'"
