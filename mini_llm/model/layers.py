"""MLP, encoder layer and decoder layer. B batch, T positions, S positions of the encoder, C hidden_size, I
intermediate_size."""

from torch import Tensor, nn

from mini_llm.model.activations import ACTIVATIONS
from mini_llm.model.attention import Attention
from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.linear import GatedLinear, Linear
from mini_llm.model.norms import NoNorm, make_norm


class MLP(nn.Module):
    """down(act(up(x))) (Vaswani et al. 2017, equation 2), or gated: down(act(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.hidden_act]
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(size, inner, bias=bias) if config.gated_mlp else None
        self.up_proj = Linear(size, inner, bias=bias)
        self.down_proj = GatedLinear(inner, size, self.act, bias) if config.gated_mlp else Linear(inner, size, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act(self.up_proj(x)))  # B T C -> B T I -> B T C
        return self.down_proj(self.gate_proj(x), self.up_proj(x))  # B T C -> two of B T I -> B T C


class _Layer(nn.Module):
    """The parts of a layer. Attributes are created in the order of the forward pass."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.pre_norm = config.norm_place == "pre"
        has_norm = layer > 0 or config.first_attention_norm
        self.attn_norm = make_norm(config, size, cast=self.pre_norm) if has_norm else NoNorm()
        self.attn = Attention(config, layer)
        if config.cross_attention:
            self.cross_norm = make_norm(config, size, cast=self.pre_norm)
            self.cross = Attention(config, layer)
        self.mlp_norm = make_norm(config, size, cast=self.pre_norm)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)


class EncoderLayer(_Layer):
    """Self-attention and MLP, each added to its input.

    The norm stands before each (pre-norm, Xiong et al. 2020) or after each sum (post-norm, Vaswani et al. 2017).
    """

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C). Masks are those of operations.attend."""
        if self.pre_norm:
            x = x + self.dropout(self.attn(self.attn_norm(x), rotary, mask, is_causal))  # B T C
            return x + self.dropout(self.mlp(self.mlp_norm(x)))  # B T C
        x = self.attn_norm(x + self.dropout(self.attn(x, rotary, mask, is_causal)))  # B T C
        return self.mlp_norm(x + self.dropout(self.mlp(x)))  # B T C


class DecoderLayer(_Layer):
    """Causal self-attention, cross-attention if there is an encoder, and MLP, each added to its input."""

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
        """x (B, T, C) -> (B, T, C); memory (B, S, C) is the encoder's output. Masks are those of operations.attend."""
        cross = None, memory_mask, False, cache, memory  # cross-attention has no rotation and no causal mask
        if self.pre_norm:
            x = x + self.dropout(self.attn(self.attn_norm(x), rotary, mask, is_causal, cache))  # B T C
            if memory is not None:
                x = x + self.dropout(self.cross(self.cross_norm(x), *cross))  # B T C
            return x + self.dropout(self.mlp(self.mlp_norm(x)))  # B T C
        x = self.attn_norm(x + self.dropout(self.attn(x, rotary, mask, is_causal, cache)))  # B T C
        if memory is not None:
            x = self.cross_norm(x + self.dropout(self.cross(x, *cross)))  # B T C
        return self.mlp_norm(x + self.dropout(self.mlp(x)))  # B T C
