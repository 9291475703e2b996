"""Models: the trunk and what stands on top. Every forward maps tensors to logits."""

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import ACTIVATIONS, KVCache, make_norm
from model.transformer import Transformer, init_weights


class CausalLM(nn.Module):
    """Decoder language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        init_weights(self, config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.trunk.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each position. See Transformer.forward for the arguments."""
        return self.lm_head(self.trunk(input_ids, attention_mask, cache))


class PredictionHead(nn.Module):
    """Dense, activation, norm: the transform before an encoder's outputs (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.head_act]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.head_bias)
        self.norm = make_norm(config, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))


class MaskedLM(nn.Module):
    """Encoder with a vocabulary head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        self.head = PredictionHead(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        init_weights(self, config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.trunk.embed.weight

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V); with `positions` (B, M) only at those, (B, M, V): most are never asked for in training."""
        hidden = self.trunk(input_ids, attention_mask)
        if positions is not None:
            hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.size(-1)))
        return self.lm_head(self.head(hidden))


class SequenceClassifier(nn.Module):
    """Trunk, pooling and a linear layer: the last real token for a decoder, first token or mean for an encoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_labels < 1:
            raise ValueError("id2label is empty: a classifier needs its labels")
        self.config = config
        self.trunk = Transformer(config)
        if config.causal:
            self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        else:
            self.head = PredictionHead(config)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout = nn.Dropout(config.dropout)
        init_weights(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, number of labels). Without a mask, tokens equal to `pad_token_id` are padding."""
        hidden = self.trunk(input_ids, attention_mask)
        if self.config.causal:
            real = attention_mask if attention_mask is not None else input_ids != self.config.pad_token_id
            last = (real.int() * torch.arange(input_ids.size(1), device=input_ids.device)).argmax(-1)
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
            return self.score(self.dropout(pooled))
        if self.config.classifier_pooling == "mean":
            real = attention_mask if attention_mask is not None else torch.ones_like(input_ids)
            weights = real[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        else:
            pooled = hidden[:, 0]
        return self.classifier(self.dropout(self.head(pooled)))


HEADS: dict[str, type[CausalLM] | type[MaskedLM] | type[SequenceClassifier]] = {
    "causal": CausalLM,
    "masked": MaskedLM,
    "classifier": SequenceClassifier,
}
