"""The shape of a training row, and the longest row that a text allows."""

from dataclasses import dataclass

from mini_llm.model import ModelConfig

from ..objectives.lengths import PairLengths
from ..objectives.spans import span_shape

SHORTEST = 4  # tokens of a row


@dataclass
class RowShape:
    """Tokens of one training row.

    tokens: all that the model reads and writes. text: tokens of the corpus that they stand for. length: positions that
    self-attention spans. label_share: fraction of `tokens` that reaches the vocabulary head.
    """

    tokens: int
    text: int
    length: int
    label_share: float

    @classmethod
    def of(cls, model: ModelConfig, length: int, pairs: PairLengths | None) -> "RowShape":
        if pairs is not None:
            tokens = max(2, round(pairs.mean_source + pairs.mean_target))
            return cls(tokens, tokens, max(1, round(pairs.mean_source)), pairs.mean_target / tokens)
        if model.is_encoder_decoder:
            shape = span_shape(length)
            tokens = length + shape.targets
            return cls(tokens, shape.text, length, shape.targets / tokens)
        return cls(length, length, length, 1.0)


def longest_window(tokens: int, spans: bool) -> int:
    """The longest row that every objective can cut from a text of `tokens` at any offset, and at least SHORTEST."""
    length = max(SHORTEST, tokens // 2)
    while spans and length > SHORTEST and 2 * span_shape(length).text - 1 > tokens:
        length -= 1
    return length
