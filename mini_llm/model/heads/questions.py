"""Extractive question answering: where the answer starts and ends in a text (Devlin et al. 2018, section 4.2).

Shapes: B batch, T positions, C hidden_size.
"""

from torch import Tensor, nn

from mini_llm.model.config import ModelConfig
from mini_llm.model.heads.base import Model, PredictionHead
from mini_llm.model.initialization import init_weights
from mini_llm.model.transformer import Transformer


class QuestionAnswerer(Model):
    """Trunk, the transform of encoders that have one, two scores per position. Encoder-decoders have no such head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config)
        transform = config.classifier_head == "transform"
        self.head = PredictionHead(config) if transform else nn.Identity()
        # Other families have no dropout here.
        self.dropout = nn.Dropout(config.dropout if transform else 0.0)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        init_weights(self, config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, 2) of token ids (B, T): that the answer starts and that it ends at each position."""
        hidden = self.trunk(input_ids, attention_mask, token_type_ids=token_type_ids)  # B T C
        return self.qa_outputs(self.dropout(self.head(hidden)))
