"""A classifier of tokens: one label per position, for named entities.

Shapes: B batch, T positions, C hidden_size.
"""

from torch import Tensor, nn

from mini_llm.model.config import ModelConfig
from mini_llm.model.heads.base import Model, PredictionHead
from mini_llm.model.initialization import init_weights
from mini_llm.model.transformer import Transformer


class TokenClassifier(Model):
    """Trunk, the transform of encoders that have one, dropout, output layer. Encoder-decoders have no such head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_labels < 1:
            raise ValueError("id2label is empty: a classifier needs at least one label")
        self.config = config
        self.trunk = Transformer(config)
        self.head = PredictionHead(config) if config.classifier_head == "transform" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_weights(self, config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, number of labels) of token ids (B, T)."""
        hidden = self.trunk(input_ids, attention_mask, token_type_ids=token_type_ids)  # B T C
        return self.classifier(self.dropout(self.head(hidden)))
