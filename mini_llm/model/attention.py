"""Multi-head attention (Vaswani et al. 2017).

Shapes: B batch, T query positions, S key positions, C hidden_size, H heads, K key-value heads, D head_dim.
"""

from torch import Tensor, nn

from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.linear import Linear
from mini_llm.model.norms import make_norm
from mini_llm.model.operations import PYTORCH, Operations, attend, split_heads


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with optional QK-norm (Henry et al. 2020).

    With `keep_weights`, each forward pass leaves its attention weights (B, H, T, S) in `weights`.
    """

    ops: Operations = PYTORCH

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, width, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o_proj = Linear(width, config.hidden_size, bias=config.attention_bias)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.keep_weights = False
        self.weights: Tensor | None = None

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        is_causal: bool,
        cache: KVCache | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, C) attends to itself and the cache, or to `memory` (B, S, C), the encoder's output -> (B, T, C)."""
        query = self.q_proj(x)  # B T H*D
        if cache is None and memory is None:
            norms = self.q_norm, self.k_norm
            key, value = self.k_proj(x), self.v_proj(x)  # B T K*D
            y, weights = self.ops.attention(
                query, key, value, *norms, rotary, mask, is_causal, self.scale, self.head_dim, self.keep_weights
            )  # B T H*D
        else:
            query = split_heads(query, self.head_dim, self.q_norm, rotary)  # B H T D
            key, value = self._keys_and_values(x, rotary, cache, memory)  # B K S D
            y, weights = attend(query, key, value, mask, is_causal, self.scale, self.keep_weights)  # B T H*D
        if self.keep_weights:
            self.weights = weights
        return self.o_proj(y)  # B T C

    def _keys_and_values(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, cache: KVCache | None, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, S, D) of the cache and x, or of `memory`; the cache keeps the latter."""
        if memory is not None and cache is not None and self.layer in cache.memory:
            return cache.memory[self.layer]
        source = x if memory is None else memory
        key = split_heads(self.k_proj(source), self.head_dim, self.k_norm, rotary)
        value = split_heads(self.v_proj(source), self.head_dim)
        key = key.to(value.dtype)
        if cache is None:
            return key, value
        if memory is None:
            return cache.append(self.layer, key, value)
        cache.memory[self.layer] = key, value
        return key, value
