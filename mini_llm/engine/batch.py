"""Batches of examples of different lengths: which examples make up a step, and in which order they are scored.

The order is a pure function of (seed, step), so that a run resumes from one integer, and of nothing else: one process
with twice the accumulation reads the same examples per step as two processes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mini_llm.engine.errors import ConfigError, DataError

# Labels of positions that count nothing.
IGNORE_INDEX = -100

# Beside tensors, flags that the model's forward takes.
Batch = dict[str, Any]

# Labels that a batch may carry, one kind for each output of the model.
LABELS = ("labels", "next_sentence_label")


def pop_labels(batch: Batch) -> list[Tensor]:
    """Take the labels out of `batch`."""
    return [batch.pop(name) for name in LABELS if name in batch]


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


@dataclass(frozen=True)
class Share:
    """How the rows of one optimizer step are dealt to ranks and micro-batches."""

    global_batch_size: int
    micro_batch_size: int
    ranks: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.micro_batch_size * self.ranks):
            legal = self.micro_batch_size * self.ranks
            raise ConfigError(
                f"global_batch_size ({self.global_batch_size}) is not a multiple of micro_batch_size x ranks "
                f"({self.micro_batch_size} x {self.ranks}); use a multiple of {legal} or another micro_batch_size"
            )

    @property
    def accumulation(self) -> int:
        return self.global_batch_size // (self.micro_batch_size * self.ranks)

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """This rank's micro-batches of the step's rows (global_batch_size, ...)."""
        dealt = rows.reshape(self.accumulation, self.ranks, self.micro_batch_size, *rows.shape[1:])
        return list(dealt[:, self.rank])


# Batches whose examples are sorted together: more gives less padding, fewer gives more chance in who meets whom.
POOL = 50


class LengthBatches:
    """Batches of similar length in random order, every example exactly once an epoch.

    In each epoch the examples are shuffled and dealt into pools of 50 batches, sorted by length inside a pool, cut into
    batches, and the batches shuffled. An epoch of N examples has ceil(N / batch_size) batches that differ in size by at
    most one, so none is a small rest. Each of ranks x accumulation micro-batches gets at least one example; where
    that cannot be with batches so small, there are fewer and larger ones.

    lengths: tokens of each example. batch_size: examples per step, over all ranks and micro-batches.
    Raises ConfigError when batch_size is smaller than ranks x accumulation, DataError when there are fewer examples.
    """

    def __init__(
        self,
        lengths: np.ndarray | list[int],
        batch_size: int,
        seed: int,
        ranks: int = 1,
        rank: int = 0,
        accumulation: int = 1,
    ) -> None:
        parts = ranks * accumulation
        if batch_size < parts:
            raise ConfigError(
                f"a batch of {batch_size} examples cannot be shared by {ranks} processes x {accumulation} accumulation "
                "steps: raise the batch size, or lower the accumulation"
            )
        if len(lengths) < parts:
            raise DataError(
                f"{len(lengths)} training examples for {ranks} processes x {accumulation} accumulation steps: "
                "each needs one. Use fewer processes, or more data"
            )
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.seed, self.ranks, self.rank, self.accumulation = seed, ranks, rank, accumulation
        self.steps_per_epoch = min(-(-len(lengths) // batch_size), len(lengths) // parts)
        self._epoch, self._plan = -1, []

    def batch(self, step: int) -> list[np.ndarray]:
        """Indices of the examples of `step` (from 0) for this rank: one array per micro-batch, none empty."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, plan_epoch(self.lengths, self.steps_per_epoch, self.seed, epoch)
        # Neighbours in length share a micro-batch, and ranks that work side by side get micro-batches of like length.
        return np.array_split(self._plan[position], self.ranks * self.accumulation)[self.rank :: self.ranks]


def plan_epoch(lengths: np.ndarray, batches: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch, each an array of indices sorted by length."""
    generator = np.random.default_rng([seed, epoch])
    dealt = np.array_split(generator.permutation(len(lengths)), batches)
    plan: list[np.ndarray] = []
    for start in range(0, batches, POOL):
        pool = dealt[start : start + POOL]
        members = np.concatenate(pool)
        members = members[np.argsort(lengths[members], kind="stable")]
        plan += np.split(members, np.cumsum([len(batch) for batch in pool])[:-1])
    return [plan[index] for index in generator.permutation(batches)]


def ordered_batches(lengths: np.ndarray | list[int], batch_size: int) -> list[np.ndarray]:
    """All examples once, sorted by length, for evaluation and prediction: arrays of up to `batch_size` indices."""
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
