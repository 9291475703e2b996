"""What `python -m tokenizer` can be told, and the rule for the vocabulary size."""

import math
from pathlib import Path

from pydantic import Field

from mini_llm.corpus.config import CorpusConfig
from mini_llm.engine.config import Config, RunName
from mini_llm.engine.settings import TrackingConfig

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
    sentinels: int | None = Field(None, gt=0, le=10_000)  # <extra_id_0>, ...: marks of corrupted spans (T5)
    seed: int = Field(0, ge=0, lt=2**64)  # of the sample
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @property
    def directory(self) -> Path:
        """Where the run lies."""
        parts = ("tokenizer", self.corpus.name, f"{self.sentinels}sentinels" if self.sentinels else "")
        return Path("runs") / (self.run or "-".join(part for part in parts if part))


def default_vocab_size(corpus_bytes: int, hidden_size: int | None = None) -> int:
    """A vocabulary that suits `corpus_bytes` of training text and a model of width `hidden_size`.

    The power of two nearest (in ratio) to the square root of the bytes, at least 512 and at most 32,768: 1 MB gives
    1,024, 11 MB 4,096, 65 MB 8,192, 1 GB 32,768. A piece must be frequent enough to be learned, and the number of
    frequent pieces grows about as the square root of the text (Heaps' law).

    A width bounds it to 2 hidden_size**2: a model of four blocks, the smallest, has 48 hidden_size**2 weights, and at
    width 64 (measured on 64 MB of reviews) an embedding of 2.7 times that still pays: 8,192 pieces beat 2,048.
    """
    target = math.sqrt(max(corpus_bytes, 1))
    if hidden_size is not None:
        target = min(target, 2 * hidden_size**2)
    return min(max(2 ** round(math.log2(max(target, 1))), SMALLEST_VOCABULARY), LARGEST_DEFAULT)
