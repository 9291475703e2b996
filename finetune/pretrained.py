"""Pretrained models: find one, and put a new classification head on it."""

from pathlib import Path
from typing import Any

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.directory import find_model
from mini_llm.model import HEADS, Model, SequenceClassifier, load_model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.model.huggingface.layouts import LAYOUTS

from .config import FinetuneConfig
from .encode import padding_id

# Families whose positions are rotations. These have no weights, so the model can read further than in pretraining.
ROTARY = ("llama", "qwen3", "modernbert")


def find_pretrained(path: Path) -> Path:
    """Return the model directory at `path` or in the run there. Raises CheckpointError or ModelDirectoryError."""
    directory = find_model(path)
    if directory is None:
        raise CheckpointError(
            f"{path}: no pretrained model there (no config.json, no model/config.json). "
            "Train one with `make pretrain`, or name a directory: --init DIR"
        )
    family = read_config(directory)["model_type"]
    able = [name for name, layout in LAYOUTS.items() if "classifier" in layout.architectures.values()]
    if family not in able:
        raise CheckpointError(
            f"{directory}: a {family} model, but transformers has no classifier of that family. "
            f"Use one of {', '.join(able)}"
        )
    return directory


def load_classifier(
    config: FinetuneConfig, source: Path, names: list[str], tokenizer: Any, max_length: int | None = None
) -> SequenceClassifier:
    """Load the pretrained trunk with a new classification head for `names`; see load_with_head."""
    model = load_with_head(config, source, "classifier", tokenizer, max_length, id2label=dict(enumerate(names)))
    assert isinstance(model, SequenceClassifier)
    return model


def load_with_head(
    config: FinetuneConfig, source: Path, head: str, tokenizer: Any, max_length: int | None, **changes: Any
) -> Model:
    """Load the pretrained trunk with a new `head`, or build the same architecture untrained.

    Sets the config's padding id to ours, because transformers uses it to find the end of a text. `max_length`: tokens
    of a text that the model shall read; more than in pretraining only if its positions have no weights. `changes`:
    further fields of ModelConfig. Raises CheckpointError for a tokenizer that is not the model's.
    """
    changes |= {"dropout": config.dropout_or_default, "pad_token_id": padding_id(tokenizer)}
    settings = read_config(source)
    if settings["model_type"] == "modernbert":
        changes["classifier_pooling"] = "mean" if config.pooling == "auto" else config.pooling
    if max_length is not None and settings["model_type"] in ROTARY:
        changes["max_position_embeddings"] = max(max_length, settings["max_position_embeddings"])
    model = load_model(source, head=head, **changes)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model only "
            f"{model.config.vocab_size:,}: they do not match. Copy the directory again"
        )
    return HEADS[head](model.config) if config.weights == "random" else model


def describe_start(source: Path, model: Model) -> list[str]:
    """Return notes on newly initialized weights and on tensors of `source` that the classifier does not use."""
    notes = [f"{source}: newly initialized: {', '.join(model.newly_initialized) or 'nothing'}"]
    if model.left_behind:
        notes.append(f"{source}: not used: {', '.join(model.left_behind)}")
    return notes
