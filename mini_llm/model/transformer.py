"""The trunk: token ids in, hidden states out. The configuration makes it an encoder or a decoder.

Shapes: B batch, T new positions, S cached and new positions, M positions of the encoder, C hidden_size, H heads.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.layers import DecoderLayer, EncoderLayer
from mini_llm.model.masks import self_attention_mask
from mini_llm.model.norms import make_norm
from mini_llm.model.positions import relative_buckets, rotary_table, sinusoidal_table


class Transformer(nn.Module):
    """Embedding, encoder or decoder layers (`blocks`), final norm.

    `checkpoint_every = n > 0` recomputes every n-th layer in the backward pass instead of keeping its activations
    (Chen et al. 2016); the gradients are bit-identical. `embed` shares the token embedding of another trunk.
    """

    def __init__(self, config: ModelConfig, embed: nn.Embedding | None = None) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_every = 0
        size = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, size) if embed is None else embed
        if config.position == "learned":
            self.embed_position = nn.Embedding(config.max_position_embeddings, size)
        if config.position == "relative":
            self.relative_bias = nn.Embedding(config.relative_buckets, config.num_attention_heads)
        if config.type_vocab_size:
            self.embed_type = nn.Embedding(config.type_vocab_size, size)
        self.embed_norm = make_norm(config, size) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        layer_class = DecoderLayer if config.causal else EncoderLayer
        self.blocks = nn.ModuleList(layer_class(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config, size) if config.final_norm else nn.Identity()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        token_type_ids: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool | None = None,
    ) -> Tensor:
        """Hidden states (B, T, C) of token ids (B, T); a decoder may attend to `memory` (B, M, C), an encoder's output.

        attention_mask (B, S) and memory_mask (B, M) are true or 1 where a token is real, None if all are.
        token_type_ids (B, T) default to 0. With a cache, the T tokens follow its `length` positions and are appended to
        it. `causal` overrides the configuration, for an encoder that is first trained as a decoder.
        Raises ValueError when the tokens reach beyond the learned positions.
        """
        config = self.config
        causal = config.causal if causal is None else causal
        past = cache.length if cache is not None else 0
        length = input_ids.size(1)
        if config.position == "learned" and past + length > config.max_position_embeddings:
            raise ValueError(f"{past + length} tokens exceed the {config.max_position_embeddings} learned positions")
        positions = torch.arange(past, past + length, device=input_ids.device)  # T
        if memory_mask is not None:
            memory_mask = memory_mask[:, None, None, :].bool()  # B 1 1 M
        # Only a decoder layer takes these.
        across = (cache, memory, memory_mask) if cache is not None or memory is not None else ()
        bias = self._relative_bias(positions, past + length, causal) if config.position == "relative" else None
        tables, masks = {}, {}
        for kind in set(config.layer_types):
            local = kind == "sliding_attention"
            theta = config.local_rope_theta if local and config.local_rope_theta else config.rope_theta
            rotary = config.position == "rotary"
            tables[kind] = rotary_table(positions, config.head_dim, theta, config.rope_scaling) if rotary else None
            window = config.sliding_window if local else None
            masks[kind] = self_attention_mask(positions, past + length, attention_mask, window, causal, bias)

        x = self.dropout(self.embed_norm(self._embed(input_ids, token_type_ids, positions)))  # B T C
        for i, (layer, kind) in enumerate(zip(self.blocks, config.layer_types, strict=True)):
            inputs = (x, tables[kind], *masks[kind], *across)
            if self.training and self.checkpoint_every and i % self.checkpoint_every == 0:
                x = checkpoint(layer, *inputs, use_reentrant=False)  # B T C
            else:
                x = layer(*inputs)  # B T C
        if cache is not None:
            cache.length += length
        return self.norm(x)  # B T C

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor | None, positions: Tensor) -> Tensor:
        """The scaled token embedding, plus embeddings of token types and absolute positions: (B, T, C)."""
        config = self.config
        x = self.embed(input_ids) * config.embedding_scale  # B T C
        if config.type_vocab_size:
            x = x + self.embed_type(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        if config.position == "learned":
            x = x + self.embed_position(positions)  # T C
        elif config.position == "sinusoidal":
            x = x + sinusoidal_table(positions, config.hidden_size).to(x.dtype)  # T C
        return x

    def _relative_bias(self, positions: Tensor, keys: int, causal: bool) -> Tensor:
        """A learned number per head and distance, added to the scores (Raffel et al. 2020): (1, H, T, S)."""
        config = self.config
        distance = torch.arange(keys, device=positions.device) - positions[:, None]  # T S
        buckets = relative_buckets(distance, not causal, config.relative_buckets, config.relative_max_distance)
        return self.relative_bias(buckets).permute(2, 0, 1)[None]  # T S H -> 1 H T S
