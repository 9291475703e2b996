"""The key-value cache of a decoder. B batch, T new positions, K key-value heads, D head_dim."""

from copy import copy

import torch
from torch import Tensor

from mini_llm.model.config import ModelConfig


class KVCache:
    """Keys and values of past positions: one preallocated pair of (B, K, max_length, D) tensors per layer.

    `length` counts the positions stored; `Transformer.forward` appends after it and advances it. `memory` holds the
    keys and values of cross-attention by layer: they depend on the encoder's output alone and never change.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (batch_size, config.num_key_value_heads, max_length, config.head_dim)
        layers = config.decoder_layers if config.is_encoder_decoder else config.num_hidden_layers
        self.layers = [
            (torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))
            for _ in range(layers)
        ]
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}
        self.max_length = max_length
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (B, K, T, D) after `length`; return all stored so far (B, K, length + T, D).

        Raises ValueError when they exceed `max_length`.
        """
        end = self.length + key.size(2)
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} positions; {end} were asked for")
        keys, values = self.layers[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self.length = min(self.length, length)

    def copy(self) -> "KVCache":
        """A copy with its own tensors."""
        other = copy(self)
        other.layers = [(keys.clone(), values.clone()) for keys, values in self.layers]
        other.memory = dict(self.memory)
        return other
