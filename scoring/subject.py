"""The model to score: found, loaded, and told apart by its head."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_llm.engine.device import choose_device
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.directory import find_model
from mini_llm.model import Model, load_model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.model.huggingface.layouts import LAYOUTS
from mini_llm.tokenization.framing import Kind, text_frame
from mini_llm.tokenization.load import load_tokenizer

# Heads that have scores, and what messages call a model with this head.
KINDS = {"causal": "a decoder", "masked": "an encoder", "seq2seq": "an encoder-decoder", "classifier": "a classifier"}


@dataclass
class Subject:
    """A model with its tokenizer. `kind` is a key of KINDS; `run` is the directory that the user named."""

    run: Path
    directory: Path
    kind: str
    model: Model
    tokenizer: Any
    device: torch.device

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids before and after a text that the model reads. Raises CheckpointError if the tokenizer lacks them."""
        config = self.model.config
        kind: Kind = "causal" if config.causal else "seq2seq" if config.is_encoder_decoder else "masked"
        return text_frame(self.tokenizer, kind)

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """The ids of the vocabulary that are no special tokens."""
        return np.setdiff1d(np.arange(self.tokenizer.vocab_size), sorted(self.tokenizer.special_ids))

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def describe(self) -> dict[str, Any]:
        """What a report says about the model."""
        weight = next(self.model.parameters())
        return {
            "model": str(self.run),
            "kind": KINDS[self.kind].partition(" ")[2],
            "parameters": self.parameters,
            "context": self.context,
            "device": self.device.type,
            "dtype": str(weight.dtype).removeprefix("torch."),
        }


def kind_of(path: Path) -> tuple[Path, str]:
    """Return the model directory at `path` (a run or a model directory) and its head, without loading it.

    Raises CheckpointError, ModelDirectoryError.
    """
    directory = find_model(path)
    if directory is None:
        problem = "no config.json here or in model/" if path.exists() else "no such directory"
        raise CheckpointError(f"{path}: {problem}, so this is not a model. Name a run, or a model directory")
    config = read_config(directory)
    kind = LAYOUTS[config["model_type"]].head_of(config["architectures"])
    if kind not in KINDS:
        raise CheckpointError(
            f"{directory}/config.json: architectures = {config['architectures']} has no scores here. "
            f"Name {', '.join(KINDS.values())}"
        )
    return directory, kind


def load_subject(path: Path, device: str = "auto", dtype: str = "auto") -> Subject:
    """Load the model and tokenizer at `path`, in evaluation mode. Raises CheckpointError, ConfigError."""
    directory, kind = kind_of(path)
    place, number = choose_device(device, dtype)
    model = load_model(directory).to(place, number)
    tokenizer = load_tokenizer(directory, model.config.vocab_size)
    return Subject(path, directory, kind, model, tokenizer, place)
