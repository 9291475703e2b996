"""Attention. B batch, T query positions, S key positions, C hidden_size, H heads, K key-value heads, D head_dim."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.norms import make_norm
from mini_llm.model.positions import rotate

# On a CPU in bf16 the fused kernel trains faster only beyond so many keys: below, two batched products and a softmax
# take half of its time (benchmarks/profile.py).
SHORT = 512


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(scale Q K^T + mask) V (Vaswani et al. 2017, equation 1), and the softmax: (B, H, T, D), (B, H, T, S).

    query (B, H, T, D); key, value (B, K, S, D). The same numbers as the fused path, which never holds the softmax.
    """
    repeats = query.size(1) // key.size(1)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query * scale) @ key.mT
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        # Added, which has no backward pass over the scores, and in their type, which needs no copy of them.
        scores += (torch.where(mask, 0.0, float("-inf")) if mask.dtype == torch.bool else mask).to(scores.dtype)
    weights = scores.softmax(-1)
    return weights @ value, weights


class Attention(nn.Module):
    """Multi-head attention, grouped key-value heads (Ainslie et al. 2023), optional QK-norm (Henry et al. 2020).

    With `keep_weights` the explicit path is taken and `weights` holds its softmax (B, H, T, S).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.grouped = config.num_key_value_heads != config.num_attention_heads
        width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_bias)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.keep_weights = False
        self.weights: Tensor | None = None
        self.kernel = None  # what is between the projections, in one operator (mini_llm/engine/kernels/attention.py)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        is_causal: bool,
        cache: KVCache | None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, C) attends to itself and the cache, or to `memory` (B, S, C): cross-attention."""
        query = self.q_proj(x)
        if self.kernel and memory is None and cache is None and self.kernel.takes(query, mask):
            return self.o_proj(self.kernel(self, query, self.k_proj(x), self.v_proj(x), rotary, mask, is_causal))
        query = self.q_norm(self._heads(query)).transpose(1, 2)  # B H T D
        if memory is None:
            key, value = self._key_value(x)
            if rotary is not None:
                query, key = rotate(query, rotary), rotate(key, rotary)
        elif cache is not None and self.layer in cache.memory:
            key, value = cache.memory[self.layer]
        else:
            key, value = self._key_value(memory)
        # A norm may give fp32 under autocast while the value is in half precision; attention wants one type.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if cache is not None and memory is None:
            key, value = cache.append(self.layer, key, value)
        elif cache is not None:
            cache.memory[self.layer] = key, value
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        short = query.dtype == torch.bfloat16 and query.device.type == "cpu" and key.size(2) <= SHORT
        if self.keep_weights or (short and query.requires_grad):
            y, weights = explicit_attention(query, key, value, mask, is_causal, self.scale)
            self.weights = weights if self.keep_weights else None
        else:
            y = F.scaled_dot_product_attention(
                query, key, value, mask, is_causal=is_causal, scale=self.scale, enable_gqa=self.grouped
            )
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, H * D) -> (B, T, H, D)."""
        return x.view(*x.shape[:2], -1, self.head_dim)

    def _key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, S, D) of x (B, S, C)."""
        return self.k_norm(self._heads(self.k_proj(x))).transpose(1, 2), self._heads(self.v_proj(x)).transpose(1, 2)
