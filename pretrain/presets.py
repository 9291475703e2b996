"""Presets: each file of configs/model/ holds the architecture choices of one model family, but no sizes."""

import difflib
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from mini_llm.engine.config import read_yaml
from mini_llm.engine.errors import ConfigError
from mini_llm.model import ModelConfig
from mini_llm.model.huggingface.directory import ModelDirectoryError, check_size, read_config
from mini_llm.model.huggingface.layouts import LAYOUTS, LayoutError, layout_for

from .preset_files import preset_path

# Set by the run, not by a preset: sizes (sizes.*), the tokenizer's special ids, the labels of a classifier.
NOT_CHOICES = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_decoder_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "dropout",
    "cross_attention",
    "id2label",
}
CHOICES = {field.name for field in fields(ModelConfig) if not field.name.endswith("_id")} - NOT_CHOICES
# Values that depend on a size are written as formulas.
FORMULAS = {"sqrt(hidden_size)": math.sqrt, "1/sqrt(hidden_size)": lambda size: 1 / math.sqrt(size)}

Shape = Literal["causal", "masked", "seq2seq"]


def read_preset(model: str) -> dict[str, Any]:
    """The validated architecture choices of `model`, with formulas unevaluated. Raises ConfigError."""
    path = preset_path(model)
    choices = read_yaml(path)
    for key in choices:
        if key in NOT_CHOICES:
            raise ConfigError(f"{path}: '{key}' is a size, not an architecture choice; set sizes.{key}=N in the run")
        if key not in CHOICES:
            near = difflib.get_close_matches(str(key), CHOICES, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(CHOICES))}"
            raise ConfigError(f"{path}: unknown key '{key}'; {hint}")
    if "causal" not in choices:
        raise ConfigError(
            f"{path}: 'causal' is missing; set true for a decoder, false for an encoder or encoder-decoder"
        )
    layers = choices.get("layer_types")
    sizes = {"num_hidden_layers": len(layers) if isinstance(layers, list) and layers else 1, "hidden_size": 64}
    sample = {"vocab_size": 64, "num_attention_heads": 1, "max_position_embeddings": 8, **sizes}
    try:
        ModelConfig(**{**sample, **_with_formulas(choices, sample["hidden_size"])})
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return choices


def shape_of(causal: bool, is_encoder_decoder: bool = False, **_: Any) -> Shape:
    """The shape of a model, which is also the name of the head to pretrain it with."""
    return "seq2seq" if is_encoder_decoder else "causal" if causal else "masked"


def build_config(model: str, sizes: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of preset `model` with these sizes and token ids; None values are left out.

    Raises ConfigError when they contradict each other, or when no Hugging Face architecture can represent the result:
    better now than when the model is saved.
    """
    choices = _with_formulas(read_preset(model), sizes["hidden_size"])
    given = {key: value for key, value in sizes.items() if value is not None}
    try:
        config = ModelConfig(**{**choices, **given})
        check_layout(config)
    except ValueError as error:
        raise ConfigError(f"model={model}: {error}") from None
    return config


def check_layout(config: ModelConfig) -> None:
    """Raise LayoutError when no Hugging Face architecture can represent `config` with its head."""
    head = shape_of(config.causal, config.is_encoder_decoder)
    layout_for(config, head).write_config(config, head)


def config_of(directory: Path) -> ModelConfig:
    """The ModelConfig of a Hugging Face directory, with or without weights. Raises ModelDirectoryError."""
    theirs = read_config(directory)
    try:
        config = LAYOUTS[theirs["model_type"]].read_config(theirs)
        # A weight takes at least a byte.
        if size := sum(path.stat().st_size for path in directory.glob("*.safetensors")):
            check_size(config, size)
        return config
    except LayoutError as error:
        raise ModelDirectoryError(f"{directory}: {error}") from None


def _with_formulas(choices: dict[str, Any], hidden_size: int) -> dict[str, Any]:
    return {
        key: FORMULAS[value](hidden_size) if isinstance(value, str) and value in FORMULAS else value
        for key, value in choices.items()
    }
