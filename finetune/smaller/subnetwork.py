"""A classifier made of some layers, channels, heads and neurons of another one: structured pruning and students.

Shapes: L layers, C channels (hidden_size), H heads, K key-value heads, D head_dim, I neurons (intermediate_size).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mini_llm.model import ModelConfig, SequenceClassifier
from mini_llm.model.huggingface.layouts import LayoutError, layout_for
from mini_llm.model.layers import DecoderLayer, EncoderLayer

# What the dimensions of each parameter (the last two parts of its name) count.
AXES: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("embed.weight", "embed_position.weight", "embed_type.weight"), (None, "channels")),
    **dict.fromkeys(("classifier.weight", "score.weight"), (None, "channels")),
    "classifier.bias": (None,),
    **dict.fromkeys((f"{norm}.{part}" for norm in ("q_norm", "k_norm") for part in ("weight", "bias")), ("dims",)),
    "q_proj.weight": ("queries", "channels"),
    "q_proj.bias": ("queries",),
    **dict.fromkeys(("k_proj.weight", "v_proj.weight"), ("keys", "channels")),
    **dict.fromkeys(("k_proj.bias", "v_proj.bias"), ("keys",)),
    "o_proj.weight": ("channels", "queries"),
    **dict.fromkeys(("gate_proj.weight", "up_proj.weight"), ("neurons", "channels")),
    **dict.fromkeys(("gate_proj.bias", "up_proj.bias"), ("neurons",)),
    "down_proj.weight": ("channels", "neurons"),
    "dense.weight": ("channels", "channels"),
}


@dataclass(frozen=True)
class Kept:
    """Indices of what stays; each row of `groups` and `neurons` belongs to one layer of the result.

    layers (L',) of the original; channels (C',); groups (L', K'): key-value heads, each with its queries;
    queries: how many query heads each of them keeps; dims (D',): positions in each head; neurons (L', I').
    """

    layers: list[int]
    channels: Tensor
    groups: Tensor
    queries: int
    dims: Tensor
    neurons: Tensor

    @classmethod
    def everything(cls, config: ModelConfig) -> "Kept":
        layers = config.num_hidden_layers
        return cls(
            list(range(layers)),
            torch.arange(config.hidden_size),
            torch.arange(config.num_key_value_heads).repeat(layers, 1),
            config.num_attention_heads // config.num_key_value_heads,
            torch.arange(config.head_dim),
            torch.arange(config.intermediate_size).repeat(layers, 1),
        )

    def indices(self, config: ModelConfig, layer: int) -> dict[str, Tensor]:
        """The indices of each axis of AXES in layer `layer` of the result; `config` is the original."""
        dim, per_group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
        groups = self.groups[layer]
        heads = (groups[:, None] * per_group + torch.arange(self.queries) % per_group).flatten()
        return {
            "channels": self.channels,
            "dims": self.dims,
            "queries": (heads[:, None] * dim + self.dims).flatten(),
            "keys": (groups[:, None] * dim + self.dims).flatten(),
            "neurons": self.neurons[layer],
        }

    def config(self, config: ModelConfig) -> ModelConfig:
        """The configuration of the result."""
        return replace(
            config,
            num_hidden_layers=len(self.layers),
            layer_types=[config.layer_types[layer] for layer in self.layers],
            hidden_size=len(self.channels),
            num_key_value_heads=self.groups.size(1),
            num_attention_heads=self.groups.size(1) * self.queries,
            head_dim=len(self.dims),
            intermediate_size=self.neurons.size(1),
        )


@torch.no_grad()
def subnetwork(model: SequenceClassifier, kept: Kept) -> SequenceClassifier:
    """A new classifier with the parts `kept` of `model`, an encoder or decoder. Layer 0 must be kept.

    With all channels and layers it computes what `model` does when the removed heads and neurons give 0.
    """
    small = SequenceClassifier(kept.config(model.config))
    state = model.state_dict()
    for name, parameter in small.named_parameters():
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "blocks" else 0
        if parts[1] == "blocks":
            parts[2] = str(kept.layers[layer])
        tensor = state[".".join(parts)]
        indices = kept.indices(model.config, layer)
        # Vectors of the residual stream: norms and the biases of what is added to it.
        for dimension, axis in enumerate(AXES.get(".".join(parts[-2:]), ("channels",))):
            if axis is not None:
                tensor = tensor.index_select(dimension, indices[axis].to(tensor.device))
        parameter.copy_(tensor)
    return small.to(next(model.parameters()).device).train(model.training)


@torch.no_grad()
def mask(model: SequenceClassifier, kept: Kept) -> None:
    """Let the heads and neurons of `model` that are not kept give 0, in place: what `subnetwork` must be equal to."""
    for layer, block in enumerate(layers_of(model)):
        indices = kept.indices(model.config, layer)
        for weight, axis in ((block.attn.o_proj.weight, "queries"), (block.mlp.down_proj.weight, "neurons")):
            gone = torch.ones(weight.size(1), dtype=torch.bool)
            gone[indices[axis]] = False
            weight[:, gone] = 0


def layers_of(model: SequenceClassifier) -> list[EncoderLayer | DecoderLayer]:
    """The layers of an encoder or decoder, in order."""
    return [module for module in model.modules() if isinstance(module, EncoderLayer | DecoderLayer)]


def has_layout(config: ModelConfig) -> bool:
    """Whether a Hugging Face class can hold a classifier of this configuration."""
    try:
        layout_for(config, "classifier")
    except LayoutError:
        return False
    return True
