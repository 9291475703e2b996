"""Span corruption (Raffel et al. 2020, section 3.1.4): sentinels replace spans of the text; the target restores them.

text     Thank you for inviting me to your party last week
input    Thank you <extra_id_0> me to your party <extra_id_1> week </s>
target   <extra_id_0> for inviting <extra_id_1> last </s>
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from mini_llm.corpus.build import TokenStore
from mini_llm.engine.batch import Batch, BatchSplit
from mini_llm.engine.errors import ConfigError

from .masked import EVALUATION_SEED
from .tensors import to_tensors
from .windows import Windows

NOISE, MEAN_SPAN = 0.15, 3.0  # share of corrupted tokens, mean length of a span
SENTINELS = 100  # in T5's vocabulary


@dataclass(frozen=True)
class SpanShape:
    """Number of tokens in a window of text, of corrupted tokens among them, and of their spans."""

    text: int
    noise: int
    spans: int

    @property
    def targets(self) -> int:
        """Tokens of the target: the spans, a sentinel before each, and the eos token."""
        return self.noise + self.spans + 1


def span_shape(length: int) -> SpanShape:
    """Return the shape of the longest window whose corrupted form, with its eos token, fits `length` tokens."""
    shape, text = SpanShape(2, 1, 1), 2
    while True:
        noise = min(max(1, round(NOISE * text)), text - 1)
        spans = min(max(1, round(noise / MEAN_SPAN)), text - noise)
        if text - noise + spans + 1 > length:
            return shape
        shape, text = SpanShape(text, noise, spans), text + 1


def sentinel_ids(tokenizer: Any) -> list[int]:
    """Return the ids of <extra_id_0>, <extra_id_1>, ... up to the first one missing."""
    named = {tokenizer.id_to_token(i): i for i in tokenizer.special_ids}
    ids: list[int] = []
    while (name := f"<extra_id_{len(ids)}>") in named:
        ids.append(named[name])
    return ids


class SpanObjective:
    """Predicts corrupted spans. All windows have equal numbers of corrupted tokens and spans, so rows are alike."""

    def __init__(self, store: TokenStore, length: int, seed: int, tokenizer: Any, start_id: int) -> None:
        """Raises ConfigError if the tokenizer has fewer sentinels than a window has spans."""
        self.shape, self.seed, self.start_id, self.eos_id = span_shape(length), seed, start_id, tokenizer.eos_id
        found = sentinel_ids(tokenizer)
        if len(found) < self.shape.spans or tokenizer.eos_id is None:
            raise ConfigError(
                f"{tokenizer.directory}: span corruption of {length} tokens needs {self.shape.spans} sentinels "
                f"(<extra_id_0>, ...) and an eos token; this tokenizer has {len(found)} sentinels. Omit `tokenizer` "
                f"to train one, or train one with: python -m tokenizer sentinels={max(SENTINELS, self.shape.spans)}"
            )
        self.sentinels = np.array(found[: self.shape.spans])
        self.windows = Windows(store, self.shape.text, 0, seed)

    def batches(self, step: int, split: BatchSplit) -> list[Batch]:
        """Return the micro-batches of this rank for `step`: input_ids, decoder_input_ids and labels."""
        rows = self.windows.batch(step, split.global_batch_size)
        inputs, targets = self.corrupt(rows, np.random.default_rng((self.seed, step)))
        parts = zip(split.micro_batches(inputs), split.micro_batches(targets), strict=True)
        return [self._batch(*part) for part in parts]

    def evaluation(self, store: TokenStore, rows: int) -> list[Batch]:
        """Return batches of all full windows in order, with the same spans corrupted in every evaluation."""
        if len(store) < self.shape.text and (shorter := self._shorter(len(store))) is not None:
            return shorter.evaluation(store, rows)
        generator, batches, text = np.random.default_rng(EVALUATION_SEED), [], self.shape.text
        for start in range(0, len(store) // text * text, rows * text):
            tokens = store.read(start, rows * text)
            windows = tokens[: len(tokens) // text * text].reshape(-1, text)
            batches.append(self._batch(*self.corrupt(windows, generator)))
        return batches

    def _shorter(self, tokens: int) -> "SpanObjective | None":
        """This objective for windows of at most `tokens`, or None if no window is that short."""
        for length in range(self.shape.text, 3, -1):
            if (shape := span_shape(length)).text <= tokens:
                shorter = copy.copy(self)
                shorter.shape, shorter.sentinels = shape, self.sentinels[: shape.spans]
                return shorter
        return None

    def corrupt(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Corrupt windows (B, text). Return (inputs (B, length), targets (B, targets))."""
        noise = self._noise(len(rows), generator)
        return self._replace(rows, noise), self._replace(rows, ~noise)

    def _noise(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return a (count, text) mask of alternating kept and corrupted spans of random length, the first one kept."""
        shape = self.shape
        kept = random_lengths(count, shape.text - shape.noise, shape.spans, generator)
        corrupted = random_lengths(count, shape.noise, shape.spans, generator)
        lengths = np.stack([kept, corrupted], axis=2).ravel()
        return np.repeat(np.tile([False, True], count * shape.spans), lengths).reshape(count, shape.text)

    def _replace(self, rows: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Replace each hidden span of `rows` by one sentinel, and append the eos token."""
        first = hidden.copy()
        first[:, 1:] &= ~hidden[:, :-1]
        shown = np.where(first, self.sentinels[first.cumsum(axis=1) - 1], rows)
        kept = shown[first | ~hidden].reshape(len(rows), -1)
        return np.hstack([kept, np.full((len(rows), 1), self.eos_id)])

    def _batch(self, inputs: np.ndarray, targets: np.ndarray) -> Batch:
        start = np.full((len(targets), 1), self.start_id)
        decoder = np.hstack([start, targets[:, :-1]])
        return to_tensors(input_ids=inputs, decoder_input_ids=decoder, labels=targets)


def random_lengths(count: int, total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """Draw (count, parts) positive integers that sum to `total` in each row, uniformly over all such rows."""
    noise = generator.random((count, total - 1))
    cuts = np.sort(np.argsort(noise, axis=1)[:, : parts - 1], axis=1) + 1
    edges = np.hstack([np.zeros((count, 1), dtype=int), cuts, np.full((count, 1), total)])
    return np.diff(edges, axis=1)
