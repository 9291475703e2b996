"""Render an Inspection as one self-contained HTML page: data as JSON and packed bytes, style from the report page."""

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
    """Return the page. Its content security policy forbids network access and all scripts but its own, by hash."""
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
        masks=len(masked_positions(inspection)),
        data=embedded_json(page_data(inspection, tokenizer)),
        weights=pack([maps.weights for maps in inspection.maps]),
        script=script,
        digest=digest,
        inspection=inspection,
    )


def page_data(inspection: Inspection, tokenizer: Any) -> dict[str, Any]:
    """Return the data that the page's script reads: tokens as keys of `words`, probabilities rounded."""
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
            # A masked model predicts the token at the position, other models the next token.
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
    masks = masked_positions(inspection)
    if len(masks) > 1 and lens is not None:
        # Each mask has a name of its own, under a key that is no token id.
        for number, position in enumerate(masks, start=1):
            sequence = data["sequences"][lens.sequence]
            words[-number] = f"{words[inspection.sequences[lens.sequence][position]]} {number}"
            sequence[position] = -number
    data["words"] = words
    return data


def masked_positions(inspection: Inspection) -> list[int]:
    """Return the positions of the masks in the text of a masked language model."""
    lens = inspection.lens
    if lens is None or not isinstance(inspection.model, MaskedLM):
        return []
    return [position for position, token in zip(lens.positions, lens.expected, strict=True) if token is None]


def embedded_json(tree: Any) -> str:
    """Return JSON that is safe inside a <script>: no character opens or closes a tag. Raises ValueError for NaN."""
    text = json.dumps(tree, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def pack(weights: list[Tensor]) -> str:
    """Encode attention weights as base64 of deflated bytes round(255 sqrt(w)), tensor after tensor.

    The square root keeps small weights apart: uniform attention over 256 tokens has weights of 1/256. To decode, square
    the bytes and divide each row by its sum. Deflate makes the zeros of a causal map almost free.
    """
    data = b"".join((w.sqrt() * 255).round().to(torch.uint8).numpy().tobytes() for w in weights)
    return base64.b64encode(zlib.compress(data)).decode()


def rounded(values: Tensor, digits: int) -> list[Any]:
    """Convert a tensor to nested lists of rounded numbers."""

    def shorten(value: Any) -> Any:
        return [shorten(item) for item in value] if isinstance(value, list) else round(value, digits)

    return shorten(values.double().tolist())


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return a token for display, with visible spaces, line ends, control characters and byte tokens."""
    try:
        token = text = tokenizer.id_to_token(token_id)
    except IndexError:
        # Rows that pad the embedding have no token.
        return f"<unused {token_id}>"
    if token_id not in tokenizer.special_ids:
        if tokenizer.is_byte(token_id):
            byte = int(token[3:5], 16)
            text = chr(byte) if byte < 0x80 else token
        elif SPACE in token:
            # Decoding a single token would lose its leading space.
            text = token.replace(SPACE, " ")
        else:
            text = tokenizer.decode([token_id]) or token
    # Escape unprintable characters (controls, bidirectional marks), which would hide or move their neighbours.
    return "".join(VISIBLE.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
