"""The sizes of a student: fewer layers, then the widest one whose parameters fit."""

from bisect import bisect_right
from dataclasses import replace

import torch

from mini_llm.engine.errors import ConfigError
from mini_llm.model import ModelConfig, SequenceClassifier

from .importance import Importance, largest
from .subnetwork import Kept, has_layout


def count_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SequenceClassifier(config).parameters())


def choose_shape(teacher: ModelConfig, share: float, layers: int | None, width: int | None) -> ModelConfig:
    """The widest configuration with at most `share` of the teacher's parameters.

    layers: None for half of the teacher's, rounded up. width: hidden_size, None for the widest that fits. Heads keep
    their size or get half of it. Raises ConfigError if no student is small enough or `layers` or `width` is too large.
    """
    layers = layers or -(-teacher.num_hidden_layers // 2)
    if layers > teacher.num_hidden_layers or (width or 1) > teacher.hidden_size:
        raise ConfigError(
            f"a student of {layers} layers{f' and {width} channels' if width else ''} is larger than its teacher, "
            f"which has {teacher.num_hidden_layers} layers and {teacher.hidden_size} channels. "
            "Lower student.layers and student.hidden_size"
        )
    most = share * count_parameters(teacher)
    able = [candidate for candidate in _candidates(teacher, layers) if has_layout(candidate)]
    able = sorted(able, key=lambda config: (config.hidden_size, config.head_dim))
    if width is not None:
        fitting = [config for config in able if config.hidden_size == width]
    else:
        fitting = able[: bisect_right(able, most, key=count_parameters)]
    if not fitting:
        wanted = f"{width} channels" if width else f"at most {most:,.0f} parameters"
        raise ConfigError(
            f"no student of {layers} layers has {wanted}: its width must be a multiple of "
            f"{_head_dims(teacher)[-1]}. Raise student.share, or lower student.layers"
        )
    return fitting[-1]


def _candidates(teacher: ModelConfig, layers: int) -> list[ModelConfig]:
    """Students of every width, with heads of the teacher's size and of half of it."""
    found = []
    kinds = [teacher.layer_types[layer] for layer in spread(teacher.num_hidden_layers, layers)]
    attention = teacher.num_attention_heads * teacher.head_dim / teacher.hidden_size
    per_group = teacher.num_attention_heads // teacher.num_key_value_heads
    for head_dim in _head_dims(teacher):
        for width in range(head_dim, teacher.hidden_size + 1, head_dim):
            heads = max(1, round(width * attention / head_dim))
            groups = max(n for n in range(1, max(1, heads // per_group) + 1) if heads % n == 0)
            share = width / teacher.hidden_size
            sizes = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": groups}
            sizes |= {"head_dim": head_dim, "num_hidden_layers": layers}
            inner = max(8, round(teacher.intermediate_size * share / 8) * 8)
            sizes["intermediate_size"] = min(inner, teacher.intermediate_size)
            found.append(replace(teacher, layer_types=kinds, **sizes))
    return found


def _head_dims(teacher: ModelConfig) -> list[int]:
    return [dim for dim in (teacher.head_dim, teacher.head_dim // 2) if dim and dim % 2 == 0] or [teacher.head_dim]


def spread(layers: int, count: int) -> list[int]:
    """`count` of `layers` layers, evenly spread, the first and the last included; the first one if it is a single."""
    return [round(index * (layers - 1) / max(count - 1, 1)) for index in range(count)]


def keep_for(student: ModelConfig, teacher: ModelConfig, found: Importance) -> Kept:
    """Which parts of the teacher initialize the student: evenly spread layers and in them the most important parts.

    This is weight subcloning (Samragh et al. 2023). Of a head of half the size it takes every other pair of rotated
    positions, which have the same frequencies there.
    """
    layers = spread(teacher.num_hidden_layers, student.num_hidden_layers)
    groups = student.num_key_value_heads
    # A student with narrow heads may have more of them: it gets the teacher's several times.
    repeats = -(-groups // teacher.num_key_value_heads)
    best = found.groups[layers].argsort(dim=-1, descending=True).repeat(1, repeats)[:, :groups]
    dims = torch.arange(0, teacher.head_dim, teacher.head_dim // student.head_dim)
    return Kept(
        layers,
        largest(found.channels, student.hidden_size),
        best,
        student.num_attention_heads // groups,
        dims,
        largest(found.neurons[layers], student.intermediate_size),
    )
