"""Masked language modelling (Devlin et al. 2018)."""

from typing import Any

import numpy as np

from mini_llm.corpus.build import TokenStore
from mini_llm.engine.batch import IGNORE_INDEX, Batch, BatchSplit

from .tensors import to_tensors
from .windows import Windows

EVALUATION_MLM_PROBABILITY = 0.15
EVALUATION_SEED = 15


class MaskedObjective:
    """Predicts masked tokens: a fixed number per row, of which 80 % become <mask>, 10 % random and 10 % stay.

    A row is <cls> tokens <sep>. A batch holds `positions`, since only masked positions reach the vocabulary head.
    """

    edges = 2  # special tokens per row

    def __init__(self, store: TokenStore, length: int, seed: int, tokenizer: Any, probability: float) -> None:
        self.windows = Windows(store, length - self.edges, 0, seed)
        self.length, self.seed, self.tokenizer = length, seed, tokenizer
        self.probability = probability
        self.special = np.array(sorted(tokenizer.special_ids))
        self.ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), self.special)

    def batches(self, step: int, split: BatchSplit) -> list[Batch]:
        """Return the micro-batches of this rank for `step`: input_ids (B, T), positions and labels (B, M)."""
        rows = self._frame(self.windows.batch(step, split.global_batch_size))
        corrupted = self.corrupt(rows, np.random.default_rng((self.seed, step)), self.probability)
        parts = [split.micro_batches(array) for array in corrupted]
        return [
            to_tensors(input_ids=inputs, positions=positions, labels=labels)
            for inputs, positions, labels in zip(*parts, strict=True)
        ]

    def corrupt(
        self, rows: np.ndarray, generator: np.random.Generator, probability: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (input ids (B, T), positions (B, M), labels (B, M)) with M = round(probability * text tokens per row).

        In a row with fewer ordinary tokens than M, the surplus labels are -100.
        """
        batch, length = rows.shape
        count = max(1, round(probability * (length - 2)))
        noise = generator.random((batch, length))
        noise[np.isin(rows, self.special)] = np.inf
        positions = np.sort(np.argpartition(noise, count - 1, axis=1)[:, :count], axis=1)
        chosen = np.take_along_axis(rows, positions, axis=1)
        masked = np.isfinite(np.take_along_axis(noise, positions, axis=1))
        labels = np.where(masked, chosen, IGNORE_INDEX)
        action = generator.random((batch, count))
        substitutes = self.ordinary[generator.integers(len(self.ordinary), size=(batch, count))]
        shown = np.where(action < 0.8, self.tokenizer.mask_id, np.where(action < 0.9, substitutes, chosen))
        inputs = rows.copy()
        np.put_along_axis(inputs, positions, np.where(masked, shown, chosen), axis=1)
        return inputs, positions, labels

    def _frame(self, windows: np.ndarray) -> np.ndarray:
        edge = np.ones((len(windows), 1), dtype=np.int64)
        return np.hstack([edge * self.tokenizer.cls_id, windows, edge * self.tokenizer.sep_id])

    def evaluation(self, store: TokenStore, rows: int) -> list[Batch]:
        """Return batches of all full windows in order, with the same 15 % masked in every evaluation of every run.

        A store that is shorter than a window is one shorter window.
        """
        inner = max(1, min(self.length - 2, len(store)))
        generator = np.random.default_rng(EVALUATION_SEED)
        batches = []
        for start in range(0, len(store) // inner * inner, rows * inner):
            tokens = store.read(start, rows * inner)
            framed = self._frame(tokens[: len(tokens) // inner * inner].reshape(-1, inner))
            inputs, positions, labels = self.corrupt(framed, generator, EVALUATION_MLM_PROBABILITY)
            batches.append(to_tensors(input_ids=inputs, positions=positions, labels=labels))
        return batches
