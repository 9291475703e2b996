"""Batches: what one holds, how a step's rows are split over ranks and micro-batches, and batches of similar length.

Which examples make up a step is a pure function of (seed, step). A run therefore resumes from one integer, and one
process with twice the gradient accumulation reads the same examples per step as two processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mini_llm.engine.errors import ConfigError, DataError
from mini_llm.model.operations import IGNORE_INDEX as IGNORE_INDEX  # objectives and losses import it from here

# What the model's forward takes, by argument name: tensors, and flags such as "causal". Training adds labels.
Batch = dict[str, Any]

# batches(step): this rank's micro-batches of a step, counted from 0.
StepBatches = Callable[[int], list[Batch]]

# Labels that a batch may carry, one key for each output of the model.
LABELS = ("labels", "next_sentence_label")


def pop_labels(batch: Batch) -> list[Tensor]:
    """Remove the labels from `batch` and return them, one tensor for each output of the model."""
    return [batch.pop(name) for name in LABELS if name in batch]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors of `batch` to `device`; flags stay as they are."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


@dataclass(frozen=True)
class BatchSplit:
    """How the rows of one optimizer step are split over ranks and micro-batches.

    Raises ConfigError when global_batch_size is not a multiple of micro_batch_size x ranks.
    """

    global_batch_size: int
    micro_batch_size: int
    ranks: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        legal = self.micro_batch_size * self.ranks
        if self.global_batch_size % legal:
            raise ConfigError(
                f"global_batch_size ({self.global_batch_size}) is not a multiple of micro_batch_size x ranks "
                f"({self.micro_batch_size} x {self.ranks}); use a multiple of {legal} or another micro_batch_size"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches per step and rank."""
        return self.global_batch_size // (self.micro_batch_size * self.ranks)

    def micro_batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """This rank's micro-batches (micro_batch_size, ...) of a step's rows (global_batch_size, ...)."""
        split = rows.reshape(self.accumulation, self.ranks, self.micro_batch_size, *rows.shape[1:])
        return list(split[:, self.rank])


# Batches whose examples are sorted by length together: a larger pool needs less padding, a smaller one mixes better.
POOL = 50


class LengthBatches:
    """Batches of similar length in random order; an epoch holds every example exactly once.

    Each epoch shuffles the examples, cuts them into pools of POOL batches, sorts each pool by length, cuts it into
    batches, and shuffles the batches. An epoch of N examples has ceil(N / batch_size) batches whose sizes differ by at
    most one, so the last batch is not a small remainder. Each of the ranks x accumulation micro-batches of a step gets
    at least one example; if that is impossible with batches this small, an epoch has fewer, larger batches.

    lengths: tokens of each example (N,). batch_size: examples per step over all ranks and micro-batches.
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
        micro_batches = ranks * accumulation
        if batch_size < micro_batches:
            raise ConfigError(
                f"a batch of {batch_size} examples cannot be split over {ranks} processes x {accumulation} "
                "accumulation steps: raise the batch size or lower the accumulation"
            )
        if len(lengths) < micro_batches:
            raise DataError(
                f"{len(lengths)} training examples for {ranks} processes x {accumulation} accumulation steps: "
                "each needs at least one. Use fewer processes or more data"
            )
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.seed, self.ranks, self.rank, self.accumulation = seed, ranks, rank, accumulation
        self.steps_per_epoch = min(-(-len(lengths) // batch_size), len(lengths) // micro_batches)
        self._epoch = -1
        self._plan: list[np.ndarray] = []

    def batch(self, step: int) -> list[np.ndarray]:
        """Indices of the examples of `step` (from 0) for this rank: one array per micro-batch, none empty."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, plan_epoch(self.lengths, self.steps_per_epoch, self.seed, epoch)
        # The batch is sorted by length: neighbours share a micro-batch, and ranks that run side by side get
        # micro-batches of similar length.
        return np.array_split(self._plan[position], self.ranks * self.accumulation)[self.rank :: self.ranks]


def plan_epoch(lengths: np.ndarray, batches: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch in training order; each is an array of example indices sorted by length."""
    generator = np.random.default_rng([seed, epoch])
    shuffled = np.array_split(generator.permutation(len(lengths)), batches)
    plan: list[np.ndarray] = []
    for start in range(0, batches, POOL):
        pool = shuffled[start : start + POOL]
        members = np.concatenate(pool)
        members = members[np.argsort(lengths[members], kind="stable")]
        plan += np.split(members, np.cumsum([len(batch) for batch in pool])[:-1])
    return [plan[index] for index in generator.permutation(batches)]


def ordered_batches(lengths: np.ndarray | list[int], batch_size: int) -> list[np.ndarray]:
    """All examples once, longest first, for evaluation and prediction: arrays of up to `batch_size` indices.

    The memory that the first batch frees then holds the tensors of each later one.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
