"""An Inspection as one self-contained HTML page: its data as JSON and packed bytes, its look from engine/templates."""

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_llm.engine.report.page import page_template
from mini_llm.model import MaskedLM

from .states import Inspection

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("inspect.js", "inspect_attention.js", "inspect_prediction.js")
SPACE = "\u2581"
VISIBLE = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5"}


def render(inspection: Inspection, tokenizer: Any, name: str) -> str:
    """The page. It needs no network, and its policy allows none; of scripts it allows its own alone, by its hash."""
    script = "\n".join((TEMPLATES / file).read_text(encoding="utf-8") for file in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    config = inspection.model.config
    layers = config.num_hidden_layers
    return page_template("inspect.html.jinja", TEMPLATES).render(
        name=name,
        notes=inspection.notes,
        kind=type(inspection.model).__name__,
        layers=f"{layers} + {config.num_decoder_layers}" if config.is_encoder_decoder else layers,
        heads=config.num_attention_heads,
        lengths={name: len(ids) for name, ids in inspection.sequences.items()},
        data=embedded_json(page_data(inspection, tokenizer)),
        weights=pack([maps.weights for maps in inspection.maps]),
        script=script,
        digest=digest,
        inspection=inspection,
    )


def page_data(inspection: Inspection, tokenizer: Any) -> dict[str, Any]:
    """What the page's script reads: tokens as indices into `words`, probabilities rounded."""
    words: dict[int, str] = {}

    def word(token_id: int | None) -> int | None:
        if token_id is not None and token_id not in words:
            words[token_id] = token_text(tokenizer, token_id)
        return token_id

    lens, decision = inspection.lens, inspection.decision
    data: dict[str, Any] = {
        "sequences": {name: [word(i) for i in ids] for name, ids in inspection.sequences.items()},
        "maps": [
            {
                "name": maps.name,
                "queries": maps.queries,
                "keys": maps.keys,
                "shape": list(maps.weights.shape),
                "entropy": rounded(maps.entropy, 3),
            }
            for maps in inspection.maps
        ],
        "lens": None,
        "decision": None,
    }
    if lens is not None:
        data["lens"] = {
            "sequence": lens.sequence,
            "positions": lens.positions,
            "expected": [word(i) for i in lens.expected],
            # A masked model is asked for the token that stands there, others for the one that follows.
            "truth": None if isinstance(inspection.model, MaskedLM) else "next token",
            "chances": rounded(lens.chances, 4),
            "ids": [[[word(i) for i in best] for best in layer] for layer in lens.ids.tolist()],
            "probabilities": rounded(lens.probabilities, 4),
        }
    if decision is not None:
        data["decision"] = {
            "sequence": next(iter(inspection.sequences)),
            "single": len(decision.names) == 1,
            "labels": [
                {"name": decision.names[label], "probability": chance, "value": target, "scores": scores}
                for label, chance, target, scores in zip(
                    decision.labels,
                    rounded(decision.probabilities[decision.labels], 5),
                    rounded(decision.targets, 4),
                    rounded(decision.scores, 5),
                    strict=True,
                )
            ],
        }
    data["words"] = words
    return data


def embedded_json(tree: Any) -> str:
    """JSON that may stand inside a <script>: no character in it ends or opens a tag. Raises ValueError for NaN."""
    text = json.dumps(tree, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def pack(weights: list[Tensor]) -> str:
    """Attention weights as one base64 string of deflated bytes: round(255 sqrt(w)), tensor after tensor.

    The square root keeps small weights apart: an even spread over 256 tokens is 1/256 each. A reader squares the bytes
    and divides each row by its sum. The zeros of a causal map take no space once deflated.
    """
    data = b"".join((w.sqrt() * 255).round().to(torch.uint8).numpy().tobytes() for w in weights)
    return base64.b64encode(zlib.compress(data)).decode()


def rounded(values: Tensor, digits: int) -> list[Any]:
    """A tensor as nested lists of short numbers."""

    def shorten(value: Any) -> Any:
        return [shorten(item) for item in value] if isinstance(value, list) else round(value, digits)

    return shorten(values.double().tolist())


def token_text(tokenizer: Any, token_id: int) -> str:
    """A token as a reader can tell it from others: spaces, line ends, controls and single bytes visible."""
    try:
        piece = text = tokenizer.piece(token_id)
    except IndexError:
        # Rows that only pad the vocabulary have no token.
        return f"<unused {token_id}>"
    if token_id not in tokenizer.special_ids:
        if tokenizer.is_byte(token_id):
            byte = int(piece[3:5], 16)
            text = chr(byte) if byte < 0x80 else piece
        elif SPACE in piece:
            # Decoding alone would lose a first space.
            text = piece.replace(SPACE, " ")
        else:
            text = tokenizer.decode([token_id]) or piece
    # What cannot be printed (controls, marks that turn the writing direction) would hide or move its neighbours.
    return "".join(VISIBLE.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
