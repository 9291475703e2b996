"""MLP and block. B batch, T positions, S memory positions, C hidden_size."""

from collections.abc import Callable

from torch import Tensor, nn

from mini_llm.model.activations import ACTIVATIONS, gated
from mini_llm.model.attention import Attention
from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.norms import make_norm, norm_for_products


class MLP(nn.Module):
    """down(act(up(x))) (Vaswani et al. 2017, equation 2), or gated: down(act(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.hidden_act]
        inner = config.intermediate_size
        self.gate_proj = nn.Linear(config.hidden_size, inner, bias=config.mlp_bias) if config.gated_mlp else None
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.gate_in_down = False  # down_proj takes gate and up (mini_llm/engine/kernels/linear.py)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act(self.up_proj(x)))
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(gate, up) if self.gate_in_down else self.down_proj(gated(self.act, gate, up))


class Block(nn.Module):
    """Attention, cross-attention where there is a memory, MLP; each in a residual, normed before it or after."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.pre_norm = config.norm_place == "pre"
        has_norm = layer > 0 or config.first_attention_norm
        self.attn_norm = make_norm(config, config.hidden_size) if has_norm else nn.Identity()
        self.attn = Attention(config, layer)
        if config.cross_attention:
            self.cross_norm = make_norm(config, config.hidden_size)
            self.cross = Attention(config, layer)
        self.mlp_norm = make_norm(config, config.hidden_size)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None = None,
        is_causal: bool = False,
        cache: KVCache | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """x and the result (B, T, C), memory (B, S, C); masks as in scaled_dot_product_attention."""
        x = self._residual(x, self.attn_norm, lambda y: self.attn(y, rotary, mask, is_causal, cache))
        if memory is not None:
            x = self._residual(x, self.cross_norm, lambda y: self.cross(y, None, memory_mask, False, cache, memory))
        return self._residual(x, self.mlp_norm, self.mlp)

    def _residual(self, x: Tensor, norm: nn.Module, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """Pre-norm (Xiong et al. 2020): x + layer(norm(x)). Post-norm (Vaswani et al. 2017): norm(x + layer(x))."""
        if self.pre_norm:
            return x + self.dropout(layer(norm_for_products(norm, x)))
        return norm(x + self.dropout(layer(x)))
