"""Read windows of a token store in an order that is a pure function of (seed, step)."""

import numpy as np

from mini_llm.corpus.build import TokenStore
from mini_llm.engine.errors import DataError


class Windows:
    """Windows of `length` tokens plus `extra` tokens of the next one, reshuffled and shifted in every epoch.

    Sample k of the run is window `order(epoch)[k mod n]` for any number of ranks and micro-batches. Any step can be
    computed on its own, so resuming only needs the step.
    """

    def __init__(self, store: TokenStore, length: int, extra: int, seed: int) -> None:
        """Raises DataError if the store is too small for one window at the largest offset."""
        self.store, self.length, self.extra, self.seed = store, length, extra, seed
        # Reserve room for the largest offset, so that every epoch has the same number of windows.
        self.per_epoch = (len(store) - extra - (length - 1)) // length
        if self.per_epoch < 1:
            raise DataError(
                f"the training text has {len(store)} tokens only, and windows of {length} tokens at any offset need "
                f"{2 * length - 1 + extra}: give more text or a smaller sizes.max_position_embeddings"
            )
        self._epoch = -1

    def batch(self, step: int, size: int) -> np.ndarray:
        """Return the windows of optimizer step `step`: (size, length + extra) int64."""
        return np.stack([self.store.read(start, self.length + self.extra) for start in self.starts(step, size)])

    def starts(self, step: int, size: int) -> list[int]:
        """Return the first token of each window of optimizer step `step`."""
        samples = range(step * size, (step + 1) * size)
        return [self._start(*divmod(sample, self.per_epoch)) for sample in samples]

    def _start(self, epoch: int, index: int) -> int:
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._offset = int(generator.integers(self.length)) if epoch else 0
            self._order = generator.permutation(self.per_epoch)
            self._epoch = epoch
        return self._offset + int(self._order[index]) * self.length
