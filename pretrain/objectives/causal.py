"""Next-token prediction."""

import numpy as np

from mini_llm.corpus.build import TokenStore
from mini_llm.engine.batch import IGNORE_INDEX, Batch, BatchSplit

from .tensors import to_tensors
from .windows import Windows


class CausalObjective:
    """Predicts each next token (Radford et al. 2018). Adds `flags` to every batch, as arguments of the model."""

    def __init__(self, store: TokenStore, length: int, seed: int, **flags: bool) -> None:
        self.flags = flags
        # The extra token is the last label of a window and the first input of the next one.
        self.windows = Windows(store, length, 1, seed)

    def batches(self, step: int, split: BatchSplit) -> list[Batch]:
        """Return the micro-batches of this rank for `step`: input_ids and labels (B, T)."""
        windows = self.windows.batch(step, split.global_batch_size)
        return [
            to_tensors(input_ids=rows[:, :-1], labels=rows[:, 1:]) | self.flags for rows in split.micro_batches(windows)
        ]

    @staticmethod
    def evaluation(store: TokenStore, length: int, rows: int) -> list[Batch]:
        """Return batches over the whole store that predict every token except the first exactly once."""
        batches = []
        for start in range(0, len(store) - 1, rows * length):
            tokens = store.read(start, rows * length + 1)
            count = -(-(len(tokens) - 1) // length)
            inputs = np.zeros(count * length, dtype=np.int64)
            labels = np.full(count * length, IGNORE_INDEX, dtype=np.int64)
            inputs[: len(tokens) - 1], labels[: len(tokens) - 1] = tokens[:-1], tokens[1:]
            batches.append(to_tensors(input_ids=inputs.reshape(count, length), labels=labels.reshape(count, length)))
        return batches
