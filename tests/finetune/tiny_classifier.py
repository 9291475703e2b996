"""A tiny pretrained encoder, labelled texts that it learns in seconds, and a fine-tuned run of both."""

import random
from pathlib import Path

import torch

from finetune.config import FinetuneConfig
from finetune.run import finetune
from mini_llm.model import MaskedLM, save_model
from mini_llm.tokenization.save import save_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer
from tests.models import encoder

NAMES = ["lower", "upper"]
QUIET = {"tracking": {"wandb": "disabled"}, "runtime": {"precision": "fp32", "device": "cpu"}, "budget": None}


def letters(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label): ten letters of which seven in ten are of the label's half of the alphabet."""
    draw = random.Random(seed)
    halves = {"lower": "abcdefghijklm", "upper": "nopqrstuvwxyz"}
    rows = []
    for index in range(count):
        label = NAMES[index % 2]
        other = NAMES[1 - index % 2]
        rows.append((" ".join(draw.choice(halves[label if draw.random() < 0.7 else other]) for _ in range(10)), label))
    return rows


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def write_pretrained(directory: Path, tokenizer: Tokenizer, **changes) -> Path:
    """A masked language model with random weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "cls_token_id": 5, "sep_token_id": 6}
    save_model(MaskedLM(encoder(**{**sizes, **ids, "intermediate_size": 64, **changes})), directory)
    save_tokenizer(tokenizer, directory, "masked")
    return directory


def train_tiny_classifier(root: Path, tokenizer: Tokenizer) -> Path:
    """runs/teacher below `root`, trained on 240 texts and tested on 200."""
    model = write_pretrained(root / "pretrained", tokenizer)
    data = {"path": str(write_rows(root / "train.csv", letters(240)))}
    data["test"] = str(write_rows(root / "test.csv", letters(200, seed=1)))
    data["validation"] = str(write_rows(root / "validation.csv", letters(100, seed=2)))
    config = FinetuneConfig(
        model=str(model), run="teacher", data=data, epochs=8, teacher="none", dropout=0.0, patience=None, **QUIET
    )
    finetune(config, root / "runs")
    return root / "runs" / "teacher"
