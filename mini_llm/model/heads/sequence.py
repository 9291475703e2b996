"""A classifier or regressor of whole texts.

Shapes: B batch, T positions, C hidden_size.
"""

import torch
from torch import Tensor, nn

from mini_llm.model.config import ModelConfig
from mini_llm.model.heads.base import Model, Pooler, PredictionHead
from mini_llm.model.heads.language import EncoderDecoder
from mini_llm.model.initialization import init_weights
from mini_llm.model.transformer import Transformer


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

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits (B, number of labels). Without a mask, `last` pooling skips tokens equal to `pad_token_id`.

        token_type_ids (B, T): 1 in the second text of a pair, for a model with embeddings of token types.
        """
        config = self.config
        if config.is_encoder_decoder:
            start = torch.full_like(input_ids[:, :1], config.start_token)
            hidden = self.trunk(input_ids, torch.cat((start, input_ids[:, :-1]), dim=1), attention_mask)  # B T C
        else:
            hidden = self.trunk(input_ids, attention_mask, token_type_ids=token_type_ids)  # B T C
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
