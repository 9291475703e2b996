"""How much the loss depends on each head, neuron and channel: |dL/dg| of a gate g = 1 on it (Michel et al. 2019).

No gate is built. A gate g on column j of a matrix product W x multiplies its term W[:, j] x[j], so that at g = 1
dL/dg = sum_i W[i, j] dL/dW[i, j]; a gate on an output row gives the sum over the row (Molchanov et al. 2019).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mini_llm.model import ModelConfig, SequenceClassifier

from .subnetwork import layers_of


@dataclass
class Importance:
    """groups (L, K): key-value heads with their query heads; neurons (L, I) of the MLPs; channels (C,)."""

    groups: Tensor
    neurons: Tensor
    channels: Tensor


def equal_importance(config: ModelConfig) -> Importance:
    """The same importance for all parts, where only the shapes of what is kept matter."""
    layers = config.num_hidden_layers
    sizes = (layers, config.num_key_value_heads), (layers, config.intermediate_size), (config.hidden_size,)
    return Importance(*(torch.zeros(size) for size in sizes))


def importance(model: SequenceClassifier, batches: Iterable[dict[str, Tensor]]) -> Importance:
    """Sums of |dL/dg| over `batches` of input_ids (B, T), attention_mask (B, T) and labels (B,).

    The gates of an attention group scale its heads' outputs, those of a channel all that is written to it.
    """
    config, blocks = model.config, layers_of(model)
    embedding = model.get_parameter("trunk.embed.weight")
    groups = torch.zeros(len(blocks), config.num_key_value_heads)
    neurons = torch.zeros(len(blocks), config.intermediate_size)
    channels = torch.zeros(config.hidden_size)
    for batch in batches:
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"]).backward()
        channels += _gates(embedding).sum(0).abs()
        for layer, block in enumerate(blocks):
            heads = _gates(block.attn.o_proj.weight)  # C H*D
            inner = _gates(block.mlp.down_proj.weight)  # C I
            groups[layer] += heads.sum(0).view(config.num_key_value_heads, -1).sum(1).abs()
            neurons[layer] += inner.sum(0).abs()
            channels += heads.sum(1).abs() + inner.sum(1).abs()
    model.zero_grad(set_to_none=True)
    return Importance(groups, neurons, channels)


def _gates(weight: Tensor) -> Tensor:
    """The derivative with respect to a factor on each weight, on the CPU."""
    gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
    return (weight.detach() * gradient).float().cpu()


def largest(scores: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest scores of each row, in ascending order."""
    return scores.topk(count, dim=-1).indices.sort(dim=-1).values
