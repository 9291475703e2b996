"""Small labelled files of every task, and the settings that read them."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = ["good", "bad", "film", "Paris", "London", "nice", "saw", "the", "works"]
PLACES, PEOPLE = ("Paris", "London"), ("Anna", "Bob")
SETTINGS: dict[str, dict[str, Any]] = {
    "multi_label": {},
    "regression": {},
    "ordinal": {"label_order": ["low", "mid", "high"]},
    "pairs": {"text": "a", "text_pair": "b"},
    "tokens": {},
    "questions": {},
}


def sentence(draw: random.Random) -> tuple[list[str], list[str]]:
    """Words and BIO tags: people, places, and the company Acme Corp."""
    words, tags = [], []
    for _ in range(4):
        kind = draw.randrange(4)
        words += [["Acme", "Corp"], [draw.choice(PLACES)], [draw.choice(PEOPLE)], ["saw"]][kind]
        tags += [["B-ORG", "I-ORG"], ["B-LOC"], ["B-PER"], ["O"]][kind]
    return words, tags


def rows(task: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that a tiny model learns from single words."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for _ in range(count):
        text, other = (" ".join(draw.choice(WORDS) for _ in range(8)) for _ in range(2))
        good = text.split().count("good")
        if task == "multi_label":
            found.append({"text": text, "label": [name for name in ("good", "bad") if name in text.split()]})
        elif task == "regression":
            found.append({"text": text, "label": 1000 + 100 * good})
        elif task == "ordinal":
            found.append({"text": text, "label": ["low", "mid", "high"][min(2, good)]})
        elif task == "pairs":
            found.append({"a": text, "b": other, "label": "same" if (good > 0) == ("good" in other) else "different"})
        elif task == "tokens":
            words, tags = sentence(draw)
            found.append({"tokens": words, "tags": tags})
        else:
            person, place = draw.choice(PEOPLE), draw.choice(PLACES)
            context = f"{text} . {person} lives in {place} . {other}"
            answers = {"text": [place], "answer_start": [context.index(f" in {place}") + 4]}
            found.append({"context": context, "question": f"Where does {person} live ?", "answers": answers})
    return found


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def task_settings(task: str, path: Path, count: int = 60) -> dict[str, Any]:
    """The settings `task` and `data` of a run on `count` rows, written to `path`."""
    return {"task": task, "data": {"path": str(write(path, rows(task, count))), **SETTINGS[task]}}
