"""Windows of a token store in an order that is a pure function of (seed, step)."""

import numpy as np

from mini_llm.corpus.build import TokenStore
from mini_llm.engine.errors import DataError


class Windows:
    """Windows of `length` tokens (and `extra` tokens of the next), shuffled and shifted anew in every epoch.

    Sample k of the run is window `order(epoch)[k mod n]`, whatever the ranks and micro-batches: any step can be
    computed alone, so resuming needs the step and nothing else.
    """

    def __init__(self, store: TokenStore, length: int, extra: int, seed: int) -> None:
        """Raises DataError when the store holds less than one window at the largest offset."""
        self.store, self.length, self.extra, self.seed = store, length, extra, seed
        # Room is left for the epoch's offset, so that every epoch has equally many windows.
        self.per_epoch = (len(store) - extra - (length - 1)) // length
        if self.per_epoch < 1:
            raise DataError(
                f"the corpus has {len(store)} tokens, one training window needs {2 * length - 1 + extra}: "
                "use more text or a smaller sizes.max_position_embeddings"
            )
        self._epoch = -1

    def batch(self, step: int, size: int) -> np.ndarray:
        """The `size` windows (size, length + extra) int64 of optimizer step `step`."""
        return np.stack([self.store.read(start, self.length + self.extra) for start in self.starts(step, size)])

    def starts(self, step: int, size: int) -> list[int]:
        """Where in the store the windows of optimizer step `step` begin."""
        samples = range(step * size, (step + 1) * size)
        return [self._start(*divmod(sample, self.per_epoch)) for sample in samples]

    def _start(self, epoch: int, index: int) -> int:
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            self._offset = int(generator.integers(self.length)) if epoch else 0
            self._order = generator.permutation(self.per_epoch)
            self._epoch = epoch
        return self._offset + int(self._order[index]) * self.length
