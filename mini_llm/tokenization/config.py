"""TokenizerConfig: the settings of a tokenizer run, and the default vocabulary size."""

import math
from pathlib import Path

from pydantic import Field

from mini_llm.corpus.config import CorpusConfig
from mini_llm.engine.config import Config, RunName
from mini_llm.engine.settings import TrackingConfig

SMALLEST_VOCABULARY = 512
LARGEST_DEFAULT = 32768
# The default of an encoder is not doubled beyond this: on 64 MB of reviews 16,384 tokens were no better than 8,192.
ENCODER_DEFAULT = 8192


class TokenizerConfig(Config):
    """Settings of one tokenizer run."""

    run: RunName | None = Field(None, description="Name under runs/; null: tokenizer, or tokenizer-NAME of the corpus.")
    corpus: CorpusConfig = Field(default_factory=CorpusConfig, description="Documents to train on.")
    vocab_size: int | None = Field(
        None,
        gt=0,
        le=2_000_000,
        description="Number of tokens; null: the power of two nearest to the square root of the bytes of text (for an "
        "encoder: twice the root below 8192), 512 to 32768.",
    )
    hidden_size: int | None = Field(
        None, gt=0, description="Width of the model it is for; limits the default vocabulary to 2 * hidden_size**2."
    )
    encoder: bool = Field(
        False, description="It is for a masked encoder, which profits from a larger vocabulary if vocab_size is null."
    )
    sample_bytes: int = Field(
        20_000_000,
        ge=1000,
        description="Bytes of text to train from, at most; takes about 15 times as much memory (60 for text without "
        "spaces).",
    )
    character_coverage: float = Field(
        0.9995,
        ge=0.98,
        le=1.0,
        description="Share of characters, by occurrence, that get a token of their own; the rest become byte tokens.",
    )
    sentinels: int | None = Field(
        None,
        gt=0,
        le=10_000,
        description="Number of T5 sentinel tokens (extra_id_0, ...) for span corruption; null: none.",
    )
    seed: int = Field(0, ge=0, lt=2**64, description="Seed of the text sample.")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="Weights & Biases.")

    @property
    def directory(self) -> Path:
        """The run directory."""
        kind = f"{self.sentinels}sentinels" if self.sentinels else "encoder" if self.encoder else ""
        parts = ("tokenizer", self.corpus.name, kind)
        return Path("runs") / (self.run or "-".join(part for part in parts if part))


def default_vocab_size(corpus_bytes: int, hidden_size: int | None = None, encoder: bool = False) -> int:
    """The vocabulary size for `corpus_bytes` of training text and a model of width `hidden_size`.

    The power of two nearest (in ratio) to the square root of the bytes, from 512 to 32,768: 1 MB gives 1,024, 11 MB
    4,096, 65 MB 8,192, 1 GB 32,768. A token must occur often enough to be learned, and the number of frequent tokens
    grows about as the square root of the text (Heaps' law).

    For an `encoder`, twice the root up to 8,192: its vocabulary head reads the masked tokens only, and a classifier
    learns more from pieces that are whole words (built-in task: 61.8 % with 4,096 tokens, 63.6 % with 8,192).

    `hidden_size` limits it to 2 * hidden_size**2: the smallest model, of four layers, has 48 * hidden_size**2 weights,
    and at width 64 (measured on 64 MB of reviews) an embedding 2.7 times as large still pays: 8,192 tokens beat 2,048.
    """
    target = math.sqrt(max(corpus_bytes, 1))
    if encoder:
        target = max(target, min(2 * target, ENCODER_DEFAULT))
    if hidden_size is not None:
        target = min(target, 2 * hidden_size**2)
    return min(max(2 ** round(math.log2(max(target, 1))), SMALLEST_VOCABULARY), LARGEST_DEFAULT)
