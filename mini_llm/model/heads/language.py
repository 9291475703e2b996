"""Language models: causal, masked, and encoder-decoder.

Shapes: B batch, T positions, S source positions, C hidden_size, V vocabulary.
"""

from torch import Tensor, nn

from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.heads.base import Model, Pooler, PredictionHead, Read, apply_read
from mini_llm.model.initialization import init_weights
from mini_llm.model.linear import Linear
from mini_llm.model.transformer import Transformer


class CausalLM(Model):
    """Decoder language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        init_weights(self, config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.trunk.embed.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        read: Read | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each position. See Transformer.forward for the arguments."""
        hidden = self.trunk(input_ids, attention_mask, cache)  # B T C
        return apply_read(read, self.predict, hidden)

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C)."""
        return self.lm_head(hidden * self.config.logit_scale)


class MaskedLM(Model):
    """Masked language model: encoder and vocabulary head.

    `config.next_sentence` adds a head that says whether the second of two texts follows the first (Devlin et al. 2018).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.head = PredictionHead(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        if config.next_sentence:
            self.pooler = Pooler(config)
            self.next_sentence = nn.Linear(config.hidden_size, 2)
        init_weights(self, config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.trunk.embed.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        causal: bool = False,
        read: Read | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, T, V), or only those at `positions` (B, M): (B, M, V). Training needs no others.

        With `config.next_sentence` also logits (B, 2) of [follows, does not follow].
        """
        hidden = self.trunk(input_ids, attention_mask, token_type_ids=token_type_ids, causal=causal)  # B T C
        chosen = hidden
        if positions is not None:
            chosen = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.size(-1)))  # B M C
        logits = apply_read(read, self.predict, chosen)
        if self.config.next_sentence:
            return logits, self.next_sentence(self.pooler(hidden[:, 0]))
        return logits

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C)."""
        return self.lm_head(self.head(hidden) * self.config.logit_scale)


class EncoderDecoder(nn.Module):
    """Encoder and decoder with a shared embedding (Vaswani et al. 2017)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Transformer(config.encoder())
        self.decoder = Transformer(config.decoder(), embed=self.encoder.embed)

    def forward(
        self,
        input_ids: Tensor | None,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """Decoder states (B, T, C) of decoder_input_ids (B, T).

        The decoder attends to the encoder's output for input_ids (B, S), or to `memory` (B, S, C): one computed before.
        """
        if memory is None:
            memory = self.encoder(input_ids, attention_mask)  # B S C
        return self.decoder(decoder_input_ids, decoder_attention_mask, cache, memory=memory, memory_mask=attention_mask)


class Seq2SeqLM(Model):
    """Encoder-decoder language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = EncoderDecoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        init_weights(self, config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.trunk.encoder.embed.weight

    def forward(
        self,
        input_ids: Tensor | None,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        memory: Tensor | None = None,
        read: Read | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of decoder_input_ids (B, T). See EncoderDecoder.forward."""
        hidden = self.trunk(
            input_ids, decoder_input_ids, attention_mask, decoder_attention_mask, cache, memory
        )  # B T C
        return apply_read(read, self.predict, hidden)

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., C)."""
        return self.lm_head(hidden * self.config.logit_scale)
