"""The trunk: token ids in, hidden states out. Encoder or decoder by `config.causal`."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.layers import Block, KVCache, make_norm, rotary_table


class Transformer(nn.Module):
    """Embedding, blocks, final norm.

    `checkpoint_every = n > 0` recomputes every n-th block in the backward pass instead of keeping its activations
    (Chen et al. 2016); the gradients are the same bits.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_every = 0
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_norm = make_norm(config, config.hidden_size) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states (B, T, C) of token ids (B, T).

        attention_mask (B, S), S = cached + T: true or 1 where a token is real; None when all are.
        With a cache the T tokens stand at positions `cache.length` and on, and are appended to it.
        """
        config = self.config
        past = cache.length if cache is not None else 0
        length = input_ids.size(1)
        positions = torch.arange(past, past + length, device=input_ids.device)
        tables, masks = {}, {}
        for kind in set(config.layer_types):
            local = kind == "sliding_attention"
            theta = config.local_rope_theta if local and config.local_rope_theta else config.rope_theta
            tables[kind] = rotary_table(positions, config.head_dim, theta)
            masks[kind] = self._mask(positions, past + length, attention_mask, config.sliding_window if local else None)

        x = self.dropout(self.embed_norm(self.embed(input_ids)))
        for i, (block, kind) in enumerate(zip(self.blocks, config.layer_types, strict=True)):
            inputs = (x, tables[kind], *masks[kind], cache)
            if self.training and self.checkpoint_every and i % self.checkpoint_every == 0:
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        if cache is not None:
            cache.length += length
        return self.norm(x)

    def _mask(
        self, positions: Tensor, keys: int, attention_mask: Tensor | None, window: int | None
    ) -> tuple[Tensor | None, bool]:
        """(mask, is_causal) for scaled_dot_product_attention; mask (B or 1, 1, T, S) is true where a key is seen."""
        causal = self.config.causal
        if attention_mask is None and window is None:
            if not causal or len(positions) == 1:
                return None, False
            if len(positions) == keys:
                return None, True
        distance = positions[:, None] - torch.arange(keys, device=positions.device)  # T S
        seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            # Qwen3 counts the token itself, ModernBERT counts the keys on either side.
            seen = seen & (distance < window if causal else distance.abs() <= window)
        seen = seen[None, None]
        if attention_mask is not None:
            # A padding query sees itself, so that no row of the softmax is empty.
            seen = (seen & attention_mask[:, None, None, :].bool()) | (distance == 0)
        return seen, False


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig) -> None:
    """Fill every parameter.

    | what                                   | how                                                              |
    |----------------------------------------|------------------------------------------------------------------|
    | projections back into the residual     | zero: every block starts as the identity (Zhang et al. 2019)     |
    | other matrices                         | normal, 1/sqrt(fan in)                                           |
    | embedding, vocabulary head, classifier | normal, `initializer_range`: the first loss is close to ln V     |
    | norm weights / biases                  | one / zero                                                       |
    """
    for name, parameter in model.named_parameters():
        owner = name.split(".")[-2] if "." in name else name
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif owner in ("o_proj", "down_proj"):
            parameter.zero_()
        elif owner in ("embed", "lm_head", "score", "classifier"):
            parameter.normal_(std=config.initializer_range)
        else:
            parameter.normal_(std=parameter.size(1) ** -0.5)
