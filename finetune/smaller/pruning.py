"""Pruning: the smallest weights become zero, or whole heads and neurons are removed."""

from dataclasses import replace

from torch import Tensor

from mini_llm.model import ModelConfig

from .importance import Importance, largest
from .subnetwork import Kept, has_layout


def prune_magnitude(tensors: dict[str, Tensor], share: float) -> None:
    """Set this share of the weights of every matrix to zero, in place: the smallest ones (Han et al. 2015)."""
    for tensor in tensors.values():
        if tensor.dim() == 2 and (count := int(share * tensor.numel())):
            flat = tensor.view(-1)
            flat[flat.abs().topk(count, largest=False).indices] = 0


def keep_important(config: ModelConfig, found: Importance, share: float) -> Kept:
    """The most important heads and neurons of each layer, without about `share` of them; all channels and layers.

    A configuration holds one number of heads for all layers, so each loses the same number. Families whose head size
    follows from width and number of heads (BERT, GPT-2, ModernBERT) keep all heads, and lose neurons alone.
    """
    everything = Kept.everything(config)
    neurons = max(8, round(config.intermediate_size * (1 - share) / 8) * 8)
    kept = replace(everything, neurons=largest(found.neurons, min(neurons, config.intermediate_size)))
    groups = max(1, round(config.num_key_value_heads * (1 - share)))
    fewer = replace(kept, groups=largest(found.groups, groups))
    return fewer if has_layout(fewer.config(config)) else kept
