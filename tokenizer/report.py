"""What a tokenizer is worth on text that it was not trained on, and the picture of how a sentence is cut."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mini_llm.tokenization.tokenizer import SPACE, Tokenizer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIECE_COLUMNS = ["piece", "id", "kind"]

_COLOURS = ("on blue", "on dark_green", "on magenta", "on red")
_SENTENCE = range(50, 111)  # characters


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """Figures on `texts`, beside those of plain bytes (names starting with byte_baseline).

    bytes_per_token: UTF-8 bytes. coverage: share of the characters that have a piece of their own. byte_fallback: share
    of the tokens that are single bytes of characters without one. tokens_per_word: words are what spaces part.
    """
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    single = {piece for i in range(tokenizer.vocab_size) if len(piece := tokenizer.piece(i)) == 1}
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


def report_table(figures: Mapping[str, Any]) -> "Table":
    """The figures of `measure` as a table, the byte baseline beside them."""
    from rich.table import Table

    table = Table(title=f"on {figures['heldout_bytes'] / 1e6:,.2f} MB of held-out text", title_justify="left")
    table.add_column("")
    table.add_column("this tokenizer", justify="right")
    table.add_column("plain bytes", justify="right")
    table.add_row("vocabulary", f"{figures['vocab_size']:,}", "256")
    table.add_row("bytes per token", f"{figures['bytes_per_token']:.3f}", "1.000")
    baseline = figures["byte_baseline_tokens_per_word"]
    table.add_row("tokens per word", f"{figures['tokens_per_word']:.2f}", f"{baseline:.2f}")
    table.add_row("characters with a piece of their own", f"{figures['coverage']:.3%}", "-")
    table.add_row("tokens that are single bytes", f"{figures['byte_fallback']:.3%}", "100.000%")
    return table


def choose_sentence(texts: Sequence[str]) -> str:
    """A line of a readable length with many words, else the beginning of the longest line."""
    lines = [line.strip() for text in texts[:200] for line in text.splitlines()]
    fitting = [line for line in lines if len(line) in _SENTENCE and len(line.split()) >= 8]
    return fitting[0] if fitting else max(lines, key=len, default="")[: _SENTENCE[-1]]


def cut(tokenizer: Tokenizer, sentence: str) -> list[list[Any]]:
    """Rows [piece, id, kind] of a sentence; kind is 'byte' for a byte of a character without a piece, else 'piece'."""
    ids = tokenizer.encode(sentence)
    return [[tokenizer.piece(i), i, "byte" if tokenizer.is_byte(i) else "piece"] for i in ids]


def draw(rows: Sequence[Sequence[Any]], console: "Console") -> None:
    """Print the picture: coloured pieces over their ids in a terminal, else pieces between '|'. Spaces are dots."""
    from rich.cells import cell_len
    from rich.text import Text

    space, line_break = ("\u00b7", "\u21b5") if console.encoding.lower().startswith("utf") else ("_", "\\n")
    shown = [str(piece).replace(SPACE, space).replace("\n", line_break).replace("\t", "\\t") for piece, _, _ in rows]
    if not console.is_terminal:
        console.print("|" + "|".join(shown) + "|", markup=False, highlight=False, soft_wrap=True)
        return
    pieces, ids, width = Text(), Text(), 0
    for number, (text, (_, token_id, kind)) in enumerate(zip(shown, rows, strict=True)):
        cell = max(cell_len(text), len(str(token_id)))
        if width and width + cell + 1 > console.width:
            console.print(pieces)
            console.print(ids)
            pieces, ids, width = Text(), Text(), 0
        colour = _COLOURS[number % len(_COLOURS)]
        style = f"bold white {colour}" + (" italic underline" if kind == "byte" else "")
        pieces.append(text, style).append(" " * (cell - cell_len(text) + 1))
        ids.append(str(token_id).ljust(cell + 1), "dim")
        width += cell + 1
    console.print(pieces)
    console.print(ids)
