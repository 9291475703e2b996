"""The trunk: token ids in, hidden states out. Encoder, decoder or decoder over a memory by configuration alone."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.layers import Block
from mini_llm.model.norms import make_norm
from mini_llm.model.positions import relative_buckets, rotary_table, sinusoidal_table


class Transformer(nn.Module):
    """Embedding, blocks, final norm.

    `checkpoint_every = n > 0` recomputes every n-th block in the backward pass instead of keeping its activations
    (Chen et al. 2016); the gradients are the same bits. `embed` shares another trunk's embedding.
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
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
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
        """Hidden states (B, T, C) of token ids (B, T), their types (B, T; all 0 when None), over memory (B, S', C).

        attention_mask (B, S), S = cached + T, and memory_mask (B, S'): true or 1 where a token is real; None when all
        are. With a cache the T tokens stand at positions `cache.length` and on, and are appended to it. `causal`
        replaces that of the configuration, for an encoder that is trained as a decoder first.
        Raises ValueError when learned positions do not reach so far.
        """
        config = self.config
        causal = config.causal if causal is None else causal
        past = cache.length if cache is not None else 0
        length = input_ids.size(1)
        if config.position == "learned" and past + length > config.max_position_embeddings:
            raise ValueError(f"{past + length} tokens; this model has {config.max_position_embeddings} positions")
        positions = torch.arange(past, past + length, device=input_ids.device)
        if memory_mask is not None:
            memory_mask = memory_mask[:, None, None, :].bool()
        tables, masks = {}, {}
        for kind in set(config.layer_types):
            local = kind == "sliding_attention"
            theta = config.local_rope_theta if local and config.local_rope_theta else config.rope_theta
            rotary = config.position == "rotary"
            tables[kind] = rotary_table(positions, config.head_dim, theta, config.rope_scaling) if rotary else None
            window = config.sliding_window if local else None
            masks[kind] = self._mask(positions, past + length, attention_mask, window, causal)

        x = self.dropout(self.embed_norm(self._embed(input_ids, token_type_ids, positions)))
        for i, (block, kind) in enumerate(zip(self.blocks, config.layer_types, strict=True)):
            inputs = (x, tables[kind], *masks[kind], cache, memory, memory_mask)
            if self.training and self.checkpoint_every and i % self.checkpoint_every == 0:
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        if cache is not None:
            cache.length += length
        return self.norm(x)

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor | None, positions: Tensor) -> Tensor:
        """Token embedding, scaled, plus those of token types and absolute positions."""
        config = self.config
        x = self.embed(input_ids) * config.embedding_scale
        if config.type_vocab_size:
            x = x + self.embed_type(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        if config.position == "learned":
            x = x + self.embed_position(positions)
        elif config.position == "sinusoidal":
            x = x + sinusoidal_table(positions, config.hidden_size).to(x.dtype)
        return x

    def _mask(
        self, positions: Tensor, keys: int, attention_mask: Tensor | None, window: int | None, causal: bool
    ) -> tuple[Tensor | None, bool]:
        """(mask, is_causal) for attention: (B or 1, H or 1, T, S), true where a key is seen or added to the scores."""
        config = self.config
        relative = config.position == "relative"
        if attention_mask is None and window is None and not relative:
            if not causal or len(positions) == 1:
                return None, False
            if len(positions) == keys:
                return None, True
        distance = torch.arange(keys, device=positions.device) - positions[:, None]  # T S
        seen = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            # Decoders count the token itself, encoders the keys on either side.
            seen = seen & (distance > -window if causal else distance.abs() <= window)
        seen = seen[None, None]
        if attention_mask is not None:
            # A padding query sees itself, so that no row of the softmax is empty.
            seen = (seen & attention_mask[:, None, None, :].bool()) | (distance == 0)
        if not relative:
            return seen, False
        buckets = relative_buckets(distance, not causal, config.relative_buckets, config.relative_max_distance)
        bias = self.relative_bias(buckets).permute(2, 0, 1)[None]  # 1 H T S
        return bias.masked_fill(~seen, float("-inf")), False
