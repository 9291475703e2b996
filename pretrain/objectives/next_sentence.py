"""BERT's two tasks on rows <cls> A <sep> B <sep>: masked tokens and next sentence (Devlin et al. 2018)."""

import numpy as np

from mini_llm.corpus.build import TokenStore
from mini_llm.engine.batch import Batch, BatchSplit

from .masked import EVALUATION_MLM_PROBABILITY, EVALUATION_SEED, MaskedObjective
from .tensors import to_tensors

FOLLOWS, ELSEWHERE = 0, 1  # labels of next-sentence prediction


class NextSentenceObjective(MaskedObjective):
    """In half of the rows B continues A, in the others it is text from elsewhere in the store.

    Adds `token_type_ids` (B, T), 0 up to the first <sep> and then 1, and `next_sentence_label` (B,) to a batch.
    """

    edges = 3

    def batches(self, step: int, split: BatchSplit) -> list[Batch]:
        """Return the micro-batches of this rank for `step`."""
        generator = np.random.default_rng((self.seed, step))
        windows = self.windows.batch(step, split.global_batch_size)
        parts = self._arrays(windows, self.windows.store, generator, self.probability)
        cut = {name: split.micro_batches(array) for name, array in parts.items()}
        return [to_tensors(**{name: arrays[i] for name, arrays in cut.items()}) for i in range(split.accumulation)]

    def evaluation(self, store: TokenStore, rows: int) -> list[Batch]:
        """Return batches of all full windows in order, with the same pairs and masks in every evaluation."""
        inner, generator, batches = self.length - self.edges, np.random.default_rng(EVALUATION_SEED), []
        for start in range(0, len(store) // inner * inner, rows * inner):
            tokens = store.read(start, rows * inner)
            windows = tokens[: len(tokens) // inner * inner].reshape(-1, inner)
            batches.append(to_tensors(**self._arrays(windows, store, generator, EVALUATION_MLM_PROBABILITY)))
        return batches

    def _arrays(
        self, windows: np.ndarray, store: TokenStore, generator: np.random.Generator, probability: float
    ) -> dict[str, np.ndarray]:
        rows, types, labels = self.pair(windows, store, generator)
        inputs, positions, masked = self.corrupt(rows, generator, probability)
        return {
            "input_ids": inputs,
            "token_type_ids": types,
            "positions": positions,
            "labels": masked,
            "next_sentence_label": labels,
        }

    def pair(
        self, windows: np.ndarray, store: TokenStore, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Split windows (B, T - 3) within their middle half. Return (rows (B, T), token types (B, T), labels (B,))."""
        count, inner = windows.shape
        cuts = generator.integers(max(1, inner // 4), max(2, inner - inner // 4), size=count)
        labels = generator.integers(2, size=count)
        starts = generator.integers(max(1, len(store) - inner), size=count)
        rows = np.empty((count, inner + self.edges), dtype=np.int64)
        for i, (window, cut) in enumerate(zip(windows, cuts, strict=True)):
            second = window[cut:] if labels[i] == FOLLOWS else store.read(int(starts[i]), inner - int(cut))
            sep = [self.tokenizer.sep_id]
            rows[i] = np.concatenate([[self.tokenizer.cls_id], window[:cut], sep, second, sep])
        types = (np.arange(inner + self.edges) > cuts[:, None] + 1).astype(np.int64)
        return rows, types, labels
