"""Text-to-text training of an encoder-decoder: encode pairs, and batch pairs of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mini_llm.engine.batch import IGNORE_INDEX, Batch, BatchSplit, LengthBatches, ordered_batches
from mini_llm.engine.errors import DataError

from ..pairs import Pair
from .lengths import PairLengths
from .tensors import to_tensors

WIDTH_MULTIPLE = 8  # batches are padded to a multiple of this length


@dataclass
class EncodedPairs:
    """Token ids of sources and targets; each ends with the eos token."""

    sources: list[np.ndarray]
    targets: list[np.ndarray]

    @property
    def lengths(self) -> PairLengths:
        """The number of pairs and their lengths, for the planner."""
        sources, targets = ([len(ids) for ids in side] for side in (self.sources, self.targets))
        longest = max(*sources, *targets)
        return PairLengths(len(sources), longest, float(np.mean(sources)), float(np.mean(targets)))


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any) -> EncodedPairs:
    """Encode pairs and append the eos token. Raises DataError if the tokenizer has none."""
    if tokenizer.eos_id is None:
        raise DataError(
            f"{tokenizer.directory}: this tokenizer has no eos token, which ends a target; use another tokenizer"
        )
    end = [tokenizer.eos_id]
    sides = (
        [np.concatenate([ids, end]) for ids in tokenizer.encode_batch([pair[side] for pair in pairs])]
        for side in (0, 1)
    )
    return EncodedPairs(*sides)


class PairsObjective:
    """Predicts each target token from the source and the target so far (Sutskever et al. 2014).

    Pairs of similar length share a batch. Texts longer than `length` are truncated but keep their eos token.
    """

    def __init__(self, pairs: EncodedPairs, length: int, seed: int, pad_id: int, start_id: int) -> None:
        self.pairs, self.length, self.seed, self.pad_id, self.start_id = pairs, length, seed, pad_id, start_id
        self.lengths = np.array([len(s) + len(t) for s, t in zip(pairs.sources, pairs.targets, strict=True)])
        self._order: LengthBatches | None = None

    def batches(self, step: int, split: BatchSplit) -> list[Batch]:
        """Return the micro-batches of this rank for `step`; see collate."""
        return [self.collate(self.pairs, rows) for rows in self.rows(step, split)]

    def rows(self, step: int, split: BatchSplit) -> list[np.ndarray]:
        """Return the indices of the pairs in each micro-batch of this rank."""
        if self._order is None or self._order.rank != split.rank:
            self._order = LengthBatches(
                self.lengths, split.global_batch_size, self.seed, split.ranks, split.rank, split.accumulation
            )
        return self._order.batch(step)

    def evaluation(self, pairs: EncodedPairs, rows: int) -> list[Batch]:
        """Return batches of all `pairs`, the longest first."""
        lengths = [len(s) + len(t) for s, t in zip(pairs.sources, pairs.targets, strict=True)]
        return [self.collate(pairs, chosen) for chosen in ordered_batches(lengths, rows)]

    def collate(self, pairs: EncodedPairs, rows: np.ndarray) -> Batch:
        """Return tensors (B, S) for the encoder and (B, T) for the decoder, padded on the right; the loss ignores
        padding."""
        inputs, mask = pad([pairs.sources[i] for i in rows], self.pad_id, self.length)
        targets, real = pad([pairs.targets[i] for i in rows], self.pad_id, self.length)
        start = np.full((len(rows), 1), self.start_id)
        return to_tensors(
            input_ids=inputs,
            attention_mask=mask.astype(np.int64),
            decoder_input_ids=np.hstack([start, targets[:, :-1]]),
            labels=np.where(real, targets, IGNORE_INDEX),
        )


def pad(rows: list[np.ndarray], pad_id: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad or truncate rows. Return (ids, mask of real tokens), both (B, T); T is a multiple of 8, at most `length`."""
    rows = [row if len(row) <= length else np.append(row[: length - 1], row[-1]) for row in rows]
    lengths = np.array([len(row) for row in rows])
    width = min(-(-int(lengths.max()) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, length)
    real = np.arange(width) < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.concatenate(rows)
    return ids, real
