"""What the command line prints in place of a text: candidates for masks, and the probabilities of given choices."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_llm.engine.errors import ConfigError

from .choices import rank_choices
from .decode import TextGenerator
from .fill import load_filler


def print_candidates(path: Path, text: str, count: int, as_json: bool, device: str, dtype: str) -> None:
    """Print the most probable tokens for each mask of `text`, as a table or one JSON object."""
    filler = load_filler(path, device, "fp32" if dtype == "int8" else dtype)
    found = filler.fill(text, count)
    if as_json:
        masks = [[candidate._asdict() for candidate in row] for row in found]
        _write(json.dumps({"text": text, "filled": filler.filled(text, found), "masks": masks}, ensure_ascii=False))
        return
    for number, row in enumerate(found, start=1):
        if len(found) > 1:
            _write(f"mask {number} of {len(found)}")
        for candidate in row:
            _write(f"{candidate.probability:8.4f}  {_shown(candidate.text)}")
    _write(filler.filled(text, found))


def print_choices(
    generator: TextGenerator, prompts: Sequence[Any], choices: str, as_json: bool, numbered: bool
) -> None:
    """Print the choices after each prompt, most likely first: a table, or for rows of a file JSON lines."""
    texts = next(csv.reader([choices]), [])
    if len(texts) < 2:
        raise ConfigError(f"--choices {choices}: give at least two texts, separated by commas")
    for row, prompt in enumerate(prompts, start=1):
        ranked = [] if numbered and prompt is None else rank_choices(generator, prompt or "", texts)
        if as_json or numbered:
            best = ranked[0].text if ranked else None
            record: dict[str, Any] = {"row": row} if numbered else {}
            record |= {"prompt": prompt or "", "choice": best, "choices": [choice._asdict() for choice in ranked]}
            _write(json.dumps(record, ensure_ascii=False))
        else:
            for choice in ranked:
                _write(f"{choice.probability:8.4f}  {_shown(choice.text)}")


def _shown(text: str) -> str:
    """Show spaces at the edges, line breaks and control characters."""
    return text if text == text.strip() and text.isprintable() else repr(text)


def _write(line: str) -> None:
    sys.stdout.write(line.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))
    sys.stdout.write("\n")
