"""Check that hostile strings survive encoding and decoding unchanged, and never encode to a special id."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mini_llm.engine.errors import CheckpointError
from mini_llm.tokenization.tokenizer import SPACE

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<mask>", "<cls>", "<sep>")
_FRAGMENTS = (
    *SPECIALS,
    "<0x0A>",
    "<0x00>",
    "<s",
    "s>",
    "<",
    ">",
    " ",
    "  ",
    "\n",
    "\t",
    "\r",
    "a",
    "Ab",
    "9",
    "--",
    "\u00e9",
    "e\u0301",
    "\u6f22",
    "\U0001f600",
    "\u200d",
    "\uff1c\uff53\uff1e",
)


def hostile_strings() -> dict[str, str]:
    """Return the test strings by name. None contains U+2581, which cannot round-trip."""
    controls = "".join(map(chr, range(32)))
    strings = {
        "empty": "",
        "all bytes as Latin-1": "".join(map(chr, range(256))),
        "control characters": controls + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
        "NUL": "a\0b\0\0",
        "specials": "".join(SPECIALS) + " " + " ".join(SPECIALS),
        "special inside a word": "pre<s>post un<mask>ed x</s>",
        "byte token as text": "<0x0A> <0x00><0xFF> <0xE2><0x96><0x81>",
        "fullwidth": "\uff1c\uff53\uff1e \uff28\uff45\uff4c\uff4c\uff4f\u3000\uff11\uff12",
        "ligatures and superscripts": "\ufb01\ufb02 x\u00b2 \u2460 \u2122 \u212b \u1e9e",
        "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
        "Chinese": "\u6f22\u5b57\u306f\u96e3\u3057\u3044\u3002\u4f60\u597d\uff0c\u4e16\u754c\uff01",
        "Korean, Thai and Hindi": "\ud55c\uad6d\uc5b4 \u0e20\u0e32\u0e29\u0e32 \u0939\u093f\u0928\u094d",
        "bidirectional": "\u0627\u0644\u0639\u0631\u0628 \u202eabc\u202c \u05e2\u05d1\u05e8 \u200f",
        "combining marks": "e\u0301 n\u0303 a" + "\u0300\u0301\u0302\u0303" * 8,
        "invisible": "a\u200bb\u00adc\ufeffd\u2060e\u00a0f\u2028g\u2029h\x85i",
        "private and unassigned": "\ue000\uf8ff\U0010ffff\ufffe\uffff\ufdd0\ufffd\U000e0001",
        "carriage returns": "a\rb\r\nc\n\rd\r\r",
        "tabs": "\ta\t\tb\t \t",
        "space before and after": "  both ends   ",
        "spaces only": " " * 37,
        "code": "def f(x):\n    if x != 0:\n\treturn {'a': [1, 2.5e-3]}  # note\n\n\nclass A: pass\n",
        "markup": "<sub>x</sub><span class='s'><strong><mark></mark></sepal></clsid>&amp;&#10;",
        "numbers": "3.14159 1,000,000 0x1F 1e-9 2024-01-31T23:59:59Z \u0663\u0664",
        "link": "https://example.org/a_b/c?d=e%20f&g=%E2%96%81#h",
    }
    strings |= {f"{n} spaces": "a" + " " * n + "b" for n in range(2, 66)}
    strings |= {f"{n} line breaks": "a" + "\n" * n + "b" for n in (2, 3, 4, 5, 7, 8, 15, 16, 17, 33)}
    strings |= {f"{n} x {c!r}": c * n for c in ("-", "=", "a", "\t", "\r\n", "ab") for n in (2, 3, 5, 8, 17, 64)}
    strings["longer than a segment"] = "".join(strings.values())
    rng = random.Random(0)
    for i in range(200):
        strings[f"random fragments {i}"] = "".join(rng.choices(_FRAGMENTS, k=rng.randrange(1, 30)))
    for i in range(100):
        strings[f"random characters {i}"] = "".join(_random_character(rng) for _ in range(rng.randrange(1, 40)))
    return {name: string.replace(SPACE, "") for name, string in strings.items()}


def _random_character(rng: random.Random) -> str:
    low, high = rng.choice([(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)])
    return chr(rng.randrange(low, high))


@dataclass
class GateReport:
    """What the gate checked. `space_marks` counts U+2581 in the texts, which decodes to a space."""

    strings: int = 0
    texts: int = 0
    space_marks: int = 0
    texts_with_space_mark: int = 0

    def __str__(self) -> str:
        line = f"round trip: {self.strings:,} hostile strings and {self.texts:,} held-out texts decode unchanged"
        if self.space_marks:
            line += (
                f"; U+2581 (SentencePiece's space mark) occurs {self.space_marks:,} times in "
                f"{self.texts_with_space_mark:,} of the texts and decodes to a space"
            )
        return line


def check(tokenizer: Any, texts: Iterable[str] = ()) -> GateReport:
    """Raise CheckpointError unless hostile strings and `texts` round-trip without special ids."""
    report = GateReport()
    for name, string in hostile_strings().items():
        _check_one(tokenizer, string, string, f"the string '{name}'")
        report.strings += 1
    _check_one(tokenizer, f"a{SPACE}b", "a b", "a text with U+2581")
    for number, text in enumerate(texts):
        marks = text.count(SPACE)
        _check_one(tokenizer, text, text.replace(SPACE, " "), f"held-out text {number}")
        report.texts += 1
        report.space_marks += marks
        report.texts_with_space_mark += bool(marks)
    return report


def _check_one(tokenizer: Any, text: str, expected: str, name: str) -> None:
    ids = tokenizer.encode(text)
    specials = tokenizer.special_ids.intersection(ids)
    if specials:
        raise CheckpointError(
            f"tokenizer gate: {name} encodes to the special token {tokenizer.id_to_token(min(specials))!r}, "
            f"which plain text must never do: {text[:80]!r}"
        )
    back = tokenizer.decode(ids)
    if back != expected:
        at = next(
            (i for i, (a, b) in enumerate(zip(expected, back, strict=False)) if a != b), min(len(expected), len(back))
        )
        raise CheckpointError(
            f"tokenizer gate: {name} does not round-trip: {expected[at : at + 40]!r} became {back[at : at + 40]!r}"
        )
    stream = tokenizer.stream()
    if "".join(map(stream.push, ids)) + stream.flush() != back:
        raise CheckpointError(f"tokenizer gate: {name} differs when decoded one id at a time: {text[:80]!r}")
