"""Measure a tokenizer on held-out text, and draw how it splits a sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, FiniteFloat, NonNegativeInt
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_llm.tokenization.tokenizer import SPACE, Tokenizer

TOKEN_COLUMNS = ["piece", "id", "kind"]  # stored in runs: keep the names

_COLOURS = ("on blue", "on dark_green", "on magenta", "on red")
_SENTENCE = range(50, 111)  # characters


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """Measure `texts`, also as plain bytes (names starting with byte_baseline).

    bytes_per_token: UTF-8 bytes. coverage: share of the characters that have their own token. byte_fallback: share of
    the tokens that are byte tokens. tokens_per_word: words are separated by whitespace.
    """
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    single = {token for i in range(tokenizer.vocab_size) if len(token := tokenizer.id_to_token(i)) == 1}
    single |= {" "} if SPACE in single else set()
    is_byte = np.array([tokenizer.is_byte(i) for i in range(tokenizer.vocab_size)])
    encoded = tokenizer.encode_batch(texts)
    tokens = sum(len(ids) for ids in encoded)
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    words = sum(len(text.split()) for text in texts)
    total = sum(characters.values())
    return {
        "vocab_size": tokenizer.vocab_size,
        "heldout_bytes": size,
        "bytes_per_token": size / max(tokens, 1),
        "coverage": sum(n for c, n in characters.items() if c in single) / max(total, 1),
        "byte_fallback": sum(int(is_byte[ids].sum()) for ids in encoded) / max(tokens, 1),
        "tokens_per_word": tokens / max(words, 1),
        "byte_baseline_tokens_per_word": size / max(words, 1),
    }


class Figures(BaseModel):
    """The numbers of summary.json that report_table shows."""

    heldout_bytes: FiniteFloat
    vocab_size: NonNegativeInt
    bytes_per_token: FiniteFloat
    tokens_per_word: FiniteFloat
    byte_baseline_tokens_per_word: FiniteFloat
    coverage: FiniteFloat
    byte_fallback: FiniteFloat


def report_table(figures: Mapping[str, Any]) -> Table:
    """Return the result of `measure` as a table, next to the byte baseline."""
    table = Table(title=f"on {figures['heldout_bytes'] / 1e6:,.2f} MB of held-out text", title_justify="left")
    table.add_column("")
    table.add_column("this tokenizer", justify="right")
    table.add_column("plain bytes", justify="right")
    table.add_row("vocabulary", f"{figures['vocab_size']:,}", "256")
    table.add_row("bytes per token", f"{figures['bytes_per_token']:.3f}", "1.000")
    baseline = figures["byte_baseline_tokens_per_word"]
    table.add_row("tokens per word", f"{figures['tokens_per_word']:.2f}", f"{baseline:.2f}")
    table.add_row("characters with their own token", f"{figures['coverage']:.3%}", "-")
    table.add_row("byte tokens", f"{figures['byte_fallback']:.3%}", "100.000%")
    return table


def choose_sentence(texts: Sequence[str]) -> str:
    """Return a line of readable length with many words, else the beginning of the longest line."""
    lines = [line.strip() for text in texts[:200] for line in text.splitlines()]
    fitting = [line for line in lines if len(line) in _SENTENCE and len(line.split()) >= 8]
    return fitting[0] if fitting else max(lines, key=len, default="")[: _SENTENCE[-1]]


def token_rows(tokenizer: Tokenizer, sentence: str) -> list[list[Any]]:
    """Return a row [token, id, kind] per token of a sentence; kind is 'byte' for a byte token, else 'piece'."""
    ids = tokenizer.encode(sentence)
    return [[tokenizer.id_to_token(i), i, "byte" if tokenizer.is_byte(i) else "piece"] for i in ids]


def draw(rows: Sequence[Sequence[Any]], console: Console) -> None:
    """Print coloured tokens above their ids in a terminal, else tokens between '|'. Spaces appear as dots."""
    space, line_break = ("\u00b7", "\u21b5") if console.encoding.lower().startswith("utf") else ("_", "\\n")
    shown = [str(token).replace(SPACE, space).replace("\n", line_break).replace("\t", "\\t") for token, _, _ in rows]
    if not console.is_terminal:
        console.print("|" + "|".join(shown) + "|", markup=False, highlight=False, soft_wrap=True)
        return
    tokens, ids, width = Text(), Text(), 0
    for number, (text, (_, token_id, kind)) in enumerate(zip(shown, rows, strict=True)):
        cell = max(cell_len(text), len(str(token_id)))
        if width and width + cell + 1 > console.width:
            console.print(tokens)
            console.print(ids)
            tokens, ids, width = Text(), Text(), 0
        colour = _COLOURS[number % len(_COLOURS)]
        style = f"bold white {colour}" + (" italic underline" if kind == "byte" else "")
        tokens.append(text, style).append(" " * (cell - cell_len(text) + 1))
        ids.append(str(token_id).ljust(cell + 1), "dim")
        width += cell + 1
    console.print(tokens)
    console.print(ids)
