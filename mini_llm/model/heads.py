"""Models: the trunk and what stands on top. Every forward maps tensors to logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mini_llm.model.activations import ACTIVATIONS
from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.initialization import init_weights
from mini_llm.model.norms import make_norm
from mini_llm.model.transformer import Transformer

# What is done with (predict, hidden) in place of predict(hidden): logits read a piece at a time never stand whole.
Read = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def _apply(read: Read | None, predict: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    return predict(hidden) if read is None else read(predict, hidden)


class CausalLM(nn.Module):
    """Decoder language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
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
        return _apply(read, self.predict, self.trunk(input_ids, attention_mask, cache))

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C)."""
        return self.lm_head(hidden * self.config.logit_scale)


class PredictionHead(nn.Module):
    """Dense, activation, norm: the transform before an encoder's outputs (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.head_act]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.head_bias)
        self.norm = make_norm(config, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))


class Pooler(nn.Module):
    """Dense and tanh on one position of each row (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).tanh()


class MaskedLM(nn.Module):
    """Encoder with a vocabulary head; with `config.next_sentence` also BERT's head over pairs of sentences."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.head = PredictionHead(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
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
        """Logits (B, T, V); with `positions` (B, M) only at those, (B, M, V): most are never asked for in training.

        With `config.next_sentence` also those of [does follow, does not] (B, 2).
        """
        hidden = self.trunk(input_ids, attention_mask, token_type_ids=token_type_ids, causal=causal)
        chosen = hidden
        if positions is not None:
            chosen = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.size(-1)))
        logits = _apply(read, self.predict, chosen)
        if self.config.next_sentence:
            return logits, self.next_sentence(self.pooler(hidden[:, 0]))
        return logits

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C)."""
        return self.lm_head(self.head(hidden) * self.config.logit_scale)


class EncoderDecoder(nn.Module):
    """Two trunks with one embedding (Vaswani et al. 2017): the decoder attends to what the encoder made."""

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
        """Decoder states (B, T, C) of decoder_input_ids (B, T) over input_ids (B, S), or over `memory` (B, S, C)."""
        if memory is None:
            memory = self.encoder(input_ids, attention_mask)
        return self.decoder(decoder_input_ids, decoder_attention_mask, cache, memory=memory, memory_mask=attention_mask)


class Seq2SeqLM(nn.Module):
    """Encoder-decoder language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = EncoderDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
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
        hidden = self.trunk(input_ids, decoder_input_ids, attention_mask, decoder_attention_mask, cache, memory)
        return _apply(read, self.predict, hidden)

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., C)."""
        return self.lm_head(hidden * self.config.logit_scale)


class SequenceClassifier(nn.Module):
    """Trunk, pooling, small head: the last real token for a decoder, first token or mean for an encoder; for an
    encoder-decoder, which reads the text twice, the decoder at its end-of-sequence token (Lewis et al. 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_labels < 1:
            raise ValueError("id2label is empty: a classifier needs its labels")
        self.config = config
        self.trunk = EncoderDecoder(config) if config.is_encoder_decoder else Transformer(config)
        if config.classifier_head == "linear":
            self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        else:
            if config.classifier_head == "transform":
                self.head = PredictionHead(config)
            else:
                self.pooler = Pooler(config)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout = nn.Dropout(config.dropout)
        init_weights(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, number of labels). Without a mask, tokens equal to `pad_token_id` are padding for `last`."""
        config = self.config
        if config.is_encoder_decoder:
            start = torch.full_like(input_ids[:, :1], config.decoder_start_token_id)
            hidden = self.trunk(input_ids, torch.cat((start, input_ids[:, :-1]), dim=1), attention_mask)
        else:
            hidden = self.trunk(input_ids, attention_mask)
        pooled = self._pool(hidden, input_ids, attention_mask)
        if config.classifier_head == "linear":
            return self.score(self.dropout(pooled))
        pooled = self.head(pooled) if config.classifier_head == "transform" else self.pooler(pooled)
        return self.classifier(self.dropout(pooled))

    def _pool(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """One state per row: hidden (B, T, C) -> (B, C)."""
        config = self.config
        if config.classifier_pooling == "cls":
            return hidden[:, 0]
        if config.classifier_pooling == "mean":
            real = attention_mask if attention_mask is not None else torch.ones_like(input_ids)
            weights = real[..., None].to(hidden.dtype)
            return (hidden * weights).sum(1) / weights.sum(1)
        if config.classifier_pooling == "eos":
            wanted = input_ids == config.eos_token_id
        else:
            wanted = attention_mask if attention_mask is not None else input_ids != config.pad_token_id
        last = (wanted.int() * torch.arange(input_ids.size(1), device=input_ids.device)).argmax(-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]


HEADS: dict[str, type[CausalLM] | type[MaskedLM] | type[Seq2SeqLM] | type[SequenceClassifier]] = {
    "causal": CausalLM,
    "masked": MaskedLM,
    "seq2seq": Seq2SeqLM,
    "classifier": SequenceClassifier,
}
