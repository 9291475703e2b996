"""Ordered classes: the median of the predicted distribution, which has the smallest expected distance in ranks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mini_llm.engine.errors import DataError

from ..quality.labels import listed
from .classes import ClassTask
from .metrics import ranks
from .objectives.ranks import RankLoss
from .task import Baseline, Parts, Row


class Ordinal(ClassTask):
    name = "ordinal"
    metrics = ("rank_mae", "kappa", "accuracy")
    smaller_is_better = ("rank_mae",)
    objective = RankLoss()

    def fit(self, rows: Sequence[Row], path: str) -> list[str]:
        notes = super().fit(rows, path)
        if order := self.config.label_order:
            missing = [name for name in self.names if name not in order]
            if missing:
                raise DataError(f"{path}: data.label_order lacks the labels {listed(missing, kind='')}")
            if unused := [name for name in order if name not in self.names]:
                notes.append(f"data.label_order: no training row has the labels {listed(unused, kind='')}")
            self.names = [name for name in order if name in self.names]
        return [*notes, f"order of the labels, lowest first: {listed(self.names, 12, '')} (data.label_order sets it)"]

    def choice(self, probabilities: np.ndarray) -> int:
        return int((probabilities.cumsum() < 0.5).sum())

    def statistics(self, rows: Sequence[Row], predictions: Sequence[Any]) -> np.ndarray:
        return ranks.statistics(self.ids(rows), np.array([self.choice(found) for found in predictions]))

    def scores(self, means: np.ndarray) -> dict[str, np.ndarray]:
        return ranks.scores(means)

    def baselines(self, parts: Parts, seed: int) -> list[Baseline]:
        scored = parts.scored[1]
        return [
            Baseline("median class", self.frequencies(parts.train, scored)),
            Baseline("TF-IDF + logistic regression", self.linear(parts.train, parts.validation, scored, seed)),
        ]
