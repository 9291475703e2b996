"""What a layout table holds, and how it is applied to configurations and tensors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "initializer_range",
    "attention_bias",
    "tie_word_embeddings",
)


class LayoutError(ValueError):
    """A configuration or set of tensors that a layout cannot hold."""


@dataclass(frozen=True)
class Layout:
    """One Hugging Face family.

    keys: their configuration key -> our field.
    defaults: their key -> value when the file leaves it out (their class default).
    fixed: our field -> the only value the family has.
    tensors: their tensor name -> ours; a tuple of ours is one fused tensor, stacked along
        dimension 0; "{i}" is the layer.
    read_rest, write_rest: what no one-to-one key expresses (rotary parameters, layer types).
    """

    model_type: str
    architectures: dict[str, str]
    keys: dict[str, str]
    fixed: dict[str, Any]
    tensors: dict[str, str | tuple[str, ...]]
    read_rest: Callable[[dict[str, Any]], dict[str, Any]]
    write_rest: Callable[[ModelConfig], dict[str, Any]]
    defaults: dict[str, Any] = field(default_factory=dict)

    def conflicts(self, config: ModelConfig) -> list[str]:
        """The fixed fields in which `config` differs, as 'key = value' texts."""
        return [f"{k} = {v}" for k, v in self.fixed.items() if getattr(config, k) != v]

    def head_of(self, architectures: list[str]) -> str | None:
        return next((head for head, name in self.architectures.items() if name in architectures), None)

    def read_config(self, theirs: dict[str, Any]) -> ModelConfig:
        """ModelConfig from a parsed config.json. Raises LayoutError for a missing key or one we cannot honour."""
        fields = dict(self.fixed)
        for key, ours in self.keys.items():
            if key in theirs:
                value = theirs[key]
            elif key in self.defaults:
                value = self.defaults[key]
            else:
                raise LayoutError(f"config.json lacks '{key}'")
            # Several end-of-sequence ids are allowed there; the first is the one generation config calls eos.
            fields[ours] = value[0] if key in TOKEN_IDS and isinstance(value, list) else value
        labels = theirs.get("id2label") or {}
        fields["id2label"] = {int(i): str(name) for i, name in labels.items()}
        fields.update(self.read_rest(theirs))
        try:
            return ModelConfig(**fields)
        except (ValueError, TypeError) as error:
            raise LayoutError(f"config.json: {error}") from None

    def write_config(self, config: ModelConfig, head: str) -> dict[str, Any]:
        """config.json for `config` under `head`. Raises LayoutError naming a key that the family cannot hold."""
        conflicts = self.conflicts(config)
        if conflicts:
            raise LayoutError(f"{self.model_type} needs {', '.join(conflicts)}")
        theirs: dict[str, Any] = {"architectures": [self.architectures[head]], "model_type": self.model_type}
        theirs.update({key: getattr(config, ours) for key, ours in self.keys.items()})
        theirs.update(self.write_rest(config))
        if head == "classifier":
            theirs["id2label"] = {str(i): name for i, name in config.id2label.items()}
            theirs["label2id"] = {name: i for i, name in config.id2label.items()}
            theirs["problem_type"] = "single_label_classification"
        return theirs

    def names(self, config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(their tensor name, our names) for every layer of `config`."""
        for theirs, ours in self.tensors.items():
            ours = (ours,) if isinstance(ours, str) else ours
            for i in range(config.num_hidden_layers) if "{i}" in theirs else (0,):
                yield theirs.format(i=i), tuple(name.format(i=i) for name in ours)

    def to_theirs(self, state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Our state dict under their names."""
        result = {}
        for theirs, ours in self.names(config):
            if all(name in state for name in ours):
                parts = [state[name] for name in ours]
                result[theirs] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return result

    def to_ours(
        self, state: dict[str, Tensor], config: ModelConfig, shapes: dict[str, torch.Size]
    ) -> dict[str, Tensor]:
        """Their state dict under our names; fused tensors are split by our `shapes`."""
        result = {}
        for theirs, ours in self.names(config):
            if theirs not in state or not all(name in shapes for name in ours):
                continue
            if len(ours) == 1:
                result[ours[0]] = state[theirs]
                continue
            sizes = [shapes[name][0] for name in ours]
            if state[theirs].dim() == 0 or len(state[theirs]) != sum(sizes):
                raise LayoutError(f"{theirs} is {tuple(state[theirs].shape)}; config.json asks for {sum(sizes)} rows")
            result.update(zip(ours, state[theirs].split(sizes), strict=True))
        return result


def rope_theta(parameters: dict[str, Any] | None, fallback: float) -> float:
    """Base of the rotary frequencies from a `rope_parameters` / `rope_scaling` entry."""
    parameters = parameters or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise LayoutError(f"rope_type '{kind}' is not supported; only 'default' is")
    return float(parameters.get("rope_theta", fallback))
