"""The layout table of a family, and its application to configurations and tensors.

In this folder, "ours" are names of ModelConfig and of our state dict, "theirs" those of config.json and of the tensors
in a Hugging Face file.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from mini_llm.model.activations import ACTIVATIONS
from mini_llm.model.config import ModelConfig, check_value

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
)
# Fields that no family restricts: they concern training, or a single classifier.
FREE = (
    "dropout",
    "init",
    "initializer_range",
    "id2label",
    "problem_type",
    "cls_token_id",
    "sep_token_id",
    "decoder_start_token_id",
)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
ACTIVATION_FIELDS = ("hidden_act", "head_act")
ACTIVATION_NAMES = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}


class LayoutError(ValueError):
    """A configuration or a set of tensors that does not fit a layout."""


@dataclass(frozen=True)
class Stored:
    """One of their tensors: ours, stacked along dimension 0, then transposed or given a leading dimension of 1.

    With `when` = (field, value), it exists only if the configuration has this value.
    """

    ours: tuple[str, ...]
    transposed: bool = False
    leading: bool = False
    when: tuple[str, Any] | None = None

    def join(self, parts: list[Tensor]) -> Tensor:
        """Their tensor from ours."""
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        tensor = tensor.T if self.transposed and tensor.dim() == 2 else tensor
        return tensor[None] if self.leading else tensor


@dataclass(frozen=True)
class Layout:
    """One Hugging Face family.

    architectures: their class -> our head; the first class of a head is the one written.
    keys: their configuration key -> our field.
    defaults: their key -> its value if the file omits it (their class default).
    required: their key -> the only value we support, and its default.
    fixed: our field -> the only value in this family, or a function of the configuration. A field in none of `keys`,
        `carried` and `fixed` must have its default.
    tensors: their tensor name -> ours; a tuple of ours is one fused tensor, stacked along dimension 0; "{i}" is the
        layer.
    carried, read_rest, write_rest: fields without a one-to-one key (rotary parameters, layer types), and the functions
        that read and write them.
    renamed: (pattern, replacement) applied to the names in a file: old spellings, and prefixes that files without a
        head omit.
    prefixes: our head -> {prefix in `tensors`: prefix of the same tensors in their class with this head}.
    ignored: patterns of their tensors without a counterpart of ours (buffers, second copies of tied weights).
    """

    model_type: str
    architectures: dict[str, str]
    keys: dict[str, str]
    tensors: Mapping[str, str | tuple[str, ...] | Stored]
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    required: dict[str, Any] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    read_rest: Callable[[dict[str, Any]], dict[str, Any]] = lambda theirs: {}
    write_rest: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    renamed: tuple[tuple[str, str], ...] = ()
    prefixes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def for_head(self, head: str | None) -> "Layout":
        """This layout with the tensor names of their class with `head`."""
        changed = {
            new + theirs.removeprefix(old): (theirs, ours)
            for old, new in self.prefixes.get(head or "", {}).items()
            for theirs, ours in self.tensors.items()
            if theirs.startswith(old)
        }
        replaced = {theirs for theirs, _ in changed.values()}
        kept = {theirs: ours for theirs, ours in self.tensors.items() if theirs not in replaced}
        return replace(self, tensors={**kept, **{name: ours for name, (_, ours) in changed.items()}})

    def conflicts(self, config: ModelConfig) -> list[str]:
        """Where `config` differs from what the family needs, as 'key = value (not other)' texts."""
        known = ({*self.keys.values(), *self.carried} - self.fixed.keys()) | {*FREE}
        problems = []
        for entry in fields(ModelConfig):
            if entry.name in known:
                continue
            needed = self.fixed.get(entry.name, None if entry.default is MISSING else entry.default)
            needed = needed(config) if callable(needed) else needed
            found = getattr(config, entry.name)
            if found != needed:
                problems.append(f"{entry.name} = {needed} (not {found})")
        return problems

    def head_of(self, architectures: list[str]) -> str | None:
        return next((head for name, head in self.architectures.items() if name in architectures), None)

    def read_config(self, theirs: dict[str, Any]) -> ModelConfig:
        """ModelConfig from a parsed config.json. Raises LayoutError for a missing or unsupported key."""
        try:
            return ModelConfig(**self._read_values(theirs))
        except LayoutError:
            raise
        except KeyError as error:
            raise LayoutError(f"config.json lacks {error}") from None
        except ValueError as error:
            raise LayoutError(f"config.json: {error}") from None
        except (TypeError, AttributeError, IndexError, ArithmeticError) as error:
            raise LayoutError(f"config.json: a value has the wrong type ({error})") from None

    def _read_values(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """Our fields from theirs."""
        for key, value in self.required.items():
            if theirs.get(key, value) != value:
                raise LayoutError(f"config.json: {key} = {theirs[key]!r} is not supported; only {value!r} is")
        values = {name: rule for name, rule in self.fixed.items() if not callable(rule)}
        for key, ours in self.keys.items():
            if key not in theirs and key not in self.defaults:
                raise LayoutError(f"config.json lacks '{key}'")
            value = theirs.get(key, self.defaults.get(key))
            # They allow several end-of-sequence ids; we use the first.
            value = value[0] if key in TOKEN_IDS and isinstance(value, list) else value
            if ours in ACTIVATION_FIELDS:
                value = read_activation(key, value)
            check_value(ours, value, key)
            if values.setdefault(ours, value) != value:
                raise LayoutError(
                    f"config.json: {key} = {value!r} and {values[ours]!r} for its counterpart must be equal"
                )
        labels = theirs.get("id2label") or {}
        values["id2label"] = {int(i): str(name) for i, name in labels.items()}
        if theirs.get("problem_type") in PROBLEM_TYPES:
            values["problem_type"] = theirs["problem_type"]
        return {**values, **self.read_rest(theirs)}

    def write_config(self, config: ModelConfig, head: str) -> dict[str, Any]:
        """config.json for `config` with `head`. Raises LayoutError that names the conflicting keys."""
        conflicts = self.conflicts(config)
        if conflicts:
            raise LayoutError(f"{self.model_type} needs {', '.join(conflicts)}")
        name = next(name for name, kind in self.architectures.items() if kind == head)
        theirs: dict[str, Any] = {"architectures": [name], "model_type": self.model_type}
        theirs.update({key: getattr(config, ours) for key, ours in self.keys.items()})
        theirs.update(self.write_rest(config))
        if head != "masked":
            theirs["architectures"] = [name]
        if head in ("classifier", "tokens"):
            theirs["id2label"] = {str(i): name for i, name in config.id2label.items()}
            theirs["label2id"] = {name: i for i, name in config.id2label.items()}
        if head == "classifier":
            theirs["problem_type"] = config.problem_type
        return theirs

    def names(self, config: ModelConfig) -> Iterator[tuple[str, Stored]]:
        """(their tensor name, its content) for every tensor of every layer of `config`."""
        for theirs, ours in self.tensors.items():
            entry = ours if isinstance(ours, Stored) else Stored((ours,) if isinstance(ours, str) else ours)
            if entry.when and getattr(config, entry.when[0]) != entry.when[1]:
                continue
            layers = config.decoder_layers if ".decoder." in entry.ours[0] else config.num_hidden_layers
            for i in range(layers) if "{i}" in theirs else (0,):
                yield theirs.format(i=i), replace(entry, ours=tuple(name.format(i=i) for name in entry.ours))

    def to_theirs(self, state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Our state dict under their names."""
        result = {}
        for theirs, entry in self.names(config):
            if all(name in state for name in entry.ours):
                result[theirs] = entry.join([state[name] for name in entry.ours])
        return result

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors under current names, without the ignored ones."""
        result = {}
        for name, tensor in state.items():
            for pattern, replacement in self.renamed:
                name = re.sub(pattern, replacement, name)
            if not any(fnmatchcase(name, pattern) for pattern in self.ignored):
                result[name] = tensor
        return result

    def to_ours(
        self, state: dict[str, Tensor], config: ModelConfig, shapes: dict[str, torch.Size]
    ) -> dict[str, Tensor]:
        """Their state dict (renamed) under our names; fused tensors are split by our `shapes`."""
        result = {}
        for theirs, entry in self.names(config):
            if theirs not in state or not all(name in shapes for name in entry.ours):
                continue
            tensor = state[theirs]
            if entry.leading and tensor.dim() > 1 and len(tensor) == 1:
                tensor = tensor[0]
            if entry.transposed and tensor.dim() == 2:
                tensor = tensor.T
            if len(entry.ours) == 1:
                result[entry.ours[0]] = tensor
                continue
            sizes = [shapes[name][0] for name in entry.ours]
            if tensor.dim() == 0 or len(tensor) != sum(sizes):
                raise LayoutError(f"{theirs} is {tuple(state[theirs].shape)}; config.json asks for {sum(sizes)} rows")
            result.update(zip(entry.ours, tensor.split(sizes), strict=True))
        return result


def read_activation(key: str, name: Any) -> str:
    """Our name of an activation. Raises LayoutError that names `key`."""
    known = ACTIVATION_NAMES.get(name, name)
    if known not in ACTIVATIONS:
        raise LayoutError(f"config.json: {key} = {name!r} is not supported; known are {', '.join(ACTIVATIONS)}")
    return known


def only_full_attention(config: ModelConfig) -> list[str]:
    """`layer_types` of a family without sliding windows."""
    return ["full_attention"] * config.num_hidden_layers


def equal_heads(config: ModelConfig) -> int:
    """`num_key_value_heads` of a family without grouped heads."""
    return config.num_attention_heads


def even_head_dim(config: ModelConfig) -> int:
    """`head_dim` of a family without a key for it."""
    return config.hidden_size // config.num_attention_heads


def with_biases(names: dict[str, str]) -> dict[str, str]:
    """The weight and the bias of each module."""
    return {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in names.items() for part in ("weight", "bias")}


def under(theirs: str, ours: str, names: dict[str, str]) -> dict[str, str]:
    """`names` with a prefix for their names and one for ours."""
    return {theirs + a: ours + b for a, b in names.items()}
