"""What `python -m tokenizer` can be told, and the rule for the vocabulary size."""

import math
from pathlib import Path

from pydantic import Field

from corpus.config import CorpusConfig
from engine.config import Config, RunName
from engine.tracking import TrackingConfig

SMALLEST_VOCABULARY = 512
LARGEST_DEFAULT = 32768


class TokenizerConfig(Config):
    """One tokenizer run."""

    run: RunName | None = None  # name of the run; None: tokenizer[-<corpus name>]
    corpus: CorpusConfig = Field(default_factory=CorpusConfig)
    vocab_size: int | None = Field(None, gt=0, le=2_000_000)  # None: default_vocab_size
    hidden_size: int | None = Field(None, gt=0)  # width of the model this is for, where known: bounds the default
    sample_bytes: int = Field(20_000_000, ge=1000)  # text to train from; memory: about 15 times this, 60 without spaces
    # Share of the characters (by occurrence) that get a piece of their own; the others become bytes.
    character_coverage: float = Field(0.9995, ge=0.98, le=1.0)
    seed: int = Field(0, ge=0, lt=2**64)  # of the sample
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @property
    def directory(self) -> Path:
        """Where the run lies."""
        return Path("runs") / (self.run or "-".join(part for part in ("tokenizer", self.corpus.name) if part))


def default_vocab_size(corpus_bytes: int, hidden_size: int | None = None) -> int:
    """A vocabulary that suits `corpus_bytes` of training text and a model of width `hidden_size`.

    The power of two nearest (in ratio) to the square root of the bytes, at least 512 and at most 32,768: 1 MB gives
    1,024, 11 MB 4,096, 65 MB 8,192, 1 GB 32,768. A piece must be frequent enough to be learned, and the number of
    frequent pieces grows about as the square root of the text (Heaps' law).

    A width bounds it to hidden_size**2 / 16. A block of a Transformer has about 12 hidden_size**2 parameters and a
    model about hidden_size / 64 blocks, so the embedding stays near a quarter of them or below: width 128 gives at
    most 1,024, 256 at most 4,096, 512 at most 16,384.
    """
    target = math.sqrt(max(corpus_bytes, 1))
    if hidden_size is not None:
        target = min(target, hidden_size**2 / 16)
    return min(max(2 ** round(math.log2(max(target, 1))), SMALLEST_VOCABULARY), LARGEST_DEFAULT)
