"""Pairs of texts with one label: entailment, duplicates, relevance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .classes import ClassTask
from .metrics import classes
from .task import Baseline, Columns, Parts, Row


class Pairs(ClassTask):
    name = "pairs"
    metrics = ("accuracy", "macro_f1", "mcc", "log_loss")
    smaller_is_better = ("log_loss",)

    @property
    def columns(self) -> Columns:
        return Columns(self.config.text, self.config.text_pair or "text_pair", self.config.label)

    def statistics(self, rows: Sequence[Row], predictions: Sequence[Any]) -> np.ndarray:
        return classes.statistics(self.ids(rows), np.stack(predictions))

    def scores(self, means: np.ndarray) -> dict[str, np.ndarray]:
        return classes.scores(means)

    def baselines(self, parts: Parts, seed: int) -> list[Baseline]:
        scored = parts.scored[1]
        return [
            Baseline("majority class", self.frequencies(parts.train, scored)),
            Baseline(
                "TF-IDF of both texts + logistic regression", self.linear(parts.train, parts.validation, scored, seed)
            ),
        ]
