"""Complete models: a trunk and an output head. Every forward returns logits.

Shapes: B batch, T positions, S source positions, C hidden_size, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mini_llm.model.activations import ACTIVATIONS
from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.initialization import init_weights
from mini_llm.model.linear import Linear
from mini_llm.model.norms import make_norm
from mini_llm.model.operations import PYTORCH, Operations
from mini_llm.model.transformer import Transformer

# A function of (predict, hidden) that a caller substitutes for predict(hidden), to compute logits in chunks and reduce
# each before the next.
Read = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def _apply(read: Read | None, predict: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    return predict(hidden) if read is None else read(predict, hidden)


class Model(nn.Module):
    """What all models share: `ops`, the operations they are built from (mini_llm/model/operations.py).

    load_model sets the names of parameters that it initialized and of tensors that it did not use.
    """

    ops: Operations = PYTORCH
    config: ModelConfig
    newly_initialized: list[str]
    left_behind: list[str]


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
        return _apply(read, self.predict, hidden)

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C)."""
        return self.lm_head(hidden * self.config.logit_scale)


class PredictionHead(nn.Module):
    """Linear layer, activation, norm: the transform before an encoder's vocabulary head (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.head_act]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.head_bias)
        self.norm = make_norm(config, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))  # ... C


class Pooler(nn.Module):
    """Linear layer and tanh on one position of each row (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).tanh()  # B C


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
        logits = _apply(read, self.predict, chosen)
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
        return _apply(read, self.predict, hidden)

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., C)."""
        return self.lm_head(hidden * self.config.logit_scale)


class SequenceClassifier(Model):
    """Trunk, pooling, small head.

    A decoder pools the last real token, an encoder its first token or the mean. An encoder-decoder reads the text in
    both trunks and pools the decoder's state at the end-of-sequence token (Lewis et al. 2020).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_labels < 1:
            raise ValueError("id2label is empty: a classifier needs at least one label")
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
        """Logits (B, number of labels). Without a mask, `last` pooling skips tokens equal to `pad_token_id`."""
        config = self.config
        if config.is_encoder_decoder:
            start = torch.full_like(input_ids[:, :1], config.start_token)
            hidden = self.trunk(input_ids, torch.cat((start, input_ids[:, :-1]), dim=1), attention_mask)  # B T C
        else:
            hidden = self.trunk(input_ids, attention_mask)  # B T C
        pooled = self._pool(hidden, input_ids, attention_mask)  # B C
        if config.classifier_head == "linear":
            return self.score(self.dropout(pooled))
        pooled = self.head(pooled) if config.classifier_head == "transform" else self.pooler(pooled)
        return self.classifier(self.dropout(pooled))

    def _pool(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """One state per row of hidden (B, T, C): (B, C)."""
        config = self.config
        if config.classifier_pooling == "cls":
            return hidden[:, 0]
        if config.classifier_pooling == "mean":
            real = attention_mask if attention_mask is not None else torch.ones_like(input_ids)
            weights = real[..., None].to(hidden.dtype)
            return (hidden * weights).sum(1) / weights.sum(1)
        if config.classifier_pooling == "eos":
            if config.eos_token_id is None:
                raise ValueError("eos_token_id is not set, but classifier_pooling = eos pools this token")
            wanted = input_ids == config.eos_token_id
        elif attention_mask is not None:
            wanted = attention_mask
        elif config.pad_token_id is not None:
            wanted = input_ids != config.pad_token_id
        else:
            raise ValueError("pad_token_id is not set: pass an attention_mask")
        last = (wanted.int() * torch.arange(input_ids.size(1), device=input_ids.device)).argmax(-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]


HEADS: dict[str, type[CausalLM] | type[MaskedLM] | type[Seq2SeqLM] | type[SequenceClassifier]] = {
    "causal": CausalLM,
    "masked": MaskedLM,
    "seq2seq": Seq2SeqLM,
    "classifier": SequenceClassifier,
}
