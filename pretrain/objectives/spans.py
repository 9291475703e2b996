"""Span corruption (Raffel et al. 2020, section 3.1.4): spans of the text become sentinels, the target restores them.

text     Thank you for inviting me to your party last week
input    Thank you <extra_id_0> me to your party <extra_id_1> week </s>
target   <extra_id_0> for inviting <extra_id_1> last </s>
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mini_llm.corpus.build import TokenStore
from mini_llm.engine.batch import Batch, Share
from mini_llm.engine.errors import ConfigError

from .masked import EVALUATION_SEED
from .tensors import to_tensors
from .windows import Windows

NOISE, MEAN_SPAN = 0.15, 3.0
SENTINELS = 100


@dataclass(frozen=True)
class SpanShape:
    """Tokens of a window of text, of these the corrupted ones, their spans, and the tokens of the target."""

    text: int
    noise: int
    spans: int

    @property
    def targets(self) -> int:
        """A sentinel before each span, the end-of-sequence token after the last."""
        return self.noise + self.spans + 1


def span_shape(length: int) -> SpanShape:
    """The longest window of text whose corrupted form, with its end-of-sequence token, fits `length` tokens."""
    shape, text = SpanShape(2, 1, 1), 2
    while True:
        noise = min(max(1, round(NOISE * text)), text - 1)
        spans = min(max(1, round(noise / MEAN_SPAN)), text - noise)
        if text - noise + spans + 1 > length:
            return shape
        shape, text = SpanShape(text, noise, spans), text + 1


def sentinel_ids(tokenizer: Any) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1>, ... as far as they go."""
    named = {tokenizer.piece(i): i for i in tokenizer.special_ids}
    ids: list[int] = []
    while (name := f"<extra_id_{len(ids)}>") in named:
        ids.append(named[name])
    return ids


class SpanObjective:
    """Every window has the same numbers of corrupted tokens and spans, so that all rows have one shape."""

    def __init__(self, store: TokenStore, length: int, seed: int, tokenizer: Any, start_id: int) -> None:
        """Raises ConfigError when the tokenizer has fewer sentinels than a window has spans."""
        self.shape, self.seed, self.start_id, self.eos_id = span_shape(length), seed, start_id, tokenizer.eos_id
        found = sentinel_ids(tokenizer)
        if len(found) < self.shape.spans or tokenizer.eos_id is None:
            raise ConfigError(
                f"{tokenizer.directory}: span corruption of {length} tokens needs {self.shape.spans} sentinels "
                f"(<extra_id_0>, ...) and an end token; this tokenizer has {len(found)} sentinels. Leave `tokenizer` "
                f"out to train one, or train it with: python -m tokenizer sentinels={max(SENTINELS, self.shape.spans)}"
            )
        self.sentinels = np.array(found[: self.shape.spans])
        self.windows = Windows(store, self.shape.text, 0, seed)

    def batches(self, step: int, share: Share) -> list[Batch]:
        rows = self.windows.batch(step, share.global_batch_size)
        inputs, targets = self.corrupt(rows, np.random.default_rng((self.seed, step)))
        parts = zip(share.split(inputs), share.split(targets), strict=True)
        return [self._batch(*part) for part in parts]

    def evaluation(self, store: TokenStore, rows: int) -> list[Batch]:
        """All full windows of the store in order, with the same spans corrupted in every evaluation of every run."""
        generator, batches, text = np.random.default_rng(EVALUATION_SEED), [], self.shape.text
        for start in range(0, len(store) // text * text, rows * text):
            tokens = store.read(start, rows * text)
            windows = tokens[: len(tokens) // text * text].reshape(-1, text)
            batches.append(self._batch(*self.corrupt(windows, generator)))
        return batches

    def corrupt(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(inputs (B, length), targets (B, targets)) of windows of text (B, text)."""
        noise = self._noise(len(rows), generator)
        return self._replace(rows, noise), self._replace(rows, ~noise)

    def _noise(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, text) booleans: kept and corrupted spans in turn, each of random length, the first one kept."""
        shape = self.shape
        kept = random_lengths(count, shape.text - shape.noise, shape.spans, generator)
        corrupted = random_lengths(count, shape.noise, shape.spans, generator)
        lengths = np.stack([kept, corrupted], axis=2).ravel()
        return np.repeat(np.tile([False, True], count * shape.spans), lengths).reshape(count, shape.text)

    def _replace(self, rows: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Rows with one sentinel in place of each hidden span, and an end-of-sequence token."""
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
    """(count, parts) positive integers that sum to `total` in each row, all such rows equally likely."""
    noise = generator.random((count, total - 1))
    cuts = np.sort(np.argsort(noise, axis=1)[:, : parts - 1], axis=1) + 1
    edges = np.hstack([np.zeros((count, 1), dtype=int), cuts, np.full((count, 1), total)])
    return np.diff(edges, axis=1)
