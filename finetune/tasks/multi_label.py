"""Several labels for one text, or none: each is predicted where its probability is at least one half."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mini_llm.engine.errors import DataError

from ..quality.labels import MANY_LABELS, all_rows, label_names, listed, similar_names
from .encoder import Window
from .metrics import label_sets
from .objectives.label_sets import LabelSetLoss
from .sequence import SequenceTask, check_known, tfidf_features
from .task import Baseline, Parts, Row
from .values import label_set

REGULARIZATION = (1.0, 10.0, 100.0)
DIGITS = 6


class MultiLabel(SequenceTask):
    """A prediction is the probability of each label (L,)."""

    name = "multi_label"
    problem_type = "multi_label_classification"
    metrics = ("micro_f1", "macro_f1", "exact_match", "hamming_loss")
    smaller_is_better = ("hamming_loss",)
    objective = LabelSetLoss()

    def target(self, value: Any, place: str) -> list[str] | None:
        return label_set(value, self.config.label_separator, place)

    def encoded(self, target: Any) -> Any:
        return np.array([name in target for name in self.names], dtype=np.float32)

    def fit(self, rows: Sequence[Row], path: str) -> list[str]:
        counts: dict[str, int] = {}
        for row in rows:
            for name in row.target:
                counts[name] = counts.get(name, 0) + 1
        self.names = label_names(counts)
        column = self.columns.label
        if len({frozenset(row.target) for row in rows}) < 2:
            shown = ", ".join(self.names) or "none"
            raise DataError(
                f"{path}: {all_rows(len(rows))} the same labels ({shown}), so there is nothing to learn. "
                f"Is '{column}' the right column (data.label=COLUMN)?"
            )
        if len(self.names) > max(MANY_LABELS, len(rows) / 2):
            raise DataError(
                f"{path}: column '{column}' has {len(self.names):,} different labels in {len(rows):,} rows "
                f"({listed(self.names, 3, '')}). Name the column that holds the labels (data.label=COLUMN), or what "
                "separates them (data.label_separator)"
            )
        everywhere = [name for name, count in counts.items() if count == len(rows)]
        notes = [f"every training row has the label {listed(everywhere, kind='')}"] if everywhere else []
        return [*similar_names(counts), *notes]

    def check(self, rows: Sequence[Row], path: str, train: str) -> None:
        check_known(self.names, [(row.place, row.target) for row in rows], path, train)

    def decode(self, rows: Sequence[Row], windows: Sequence[Window], logits: Sequence[np.ndarray]) -> list[Any]:
        return list(1 / (1 + np.exp(-np.stack(logits).astype(np.float64))))

    def matrix(self, rows: Sequence[Row]) -> np.ndarray:
        return np.stack([self.encoded(row.target) for row in rows])

    def statistics(self, rows: Sequence[Row], predictions: Sequence[Any]) -> np.ndarray:
        return label_sets.statistics(self.matrix(rows), (np.stack(predictions) >= 0.5).astype(float))

    def scores(self, means: np.ndarray) -> dict[str, np.ndarray]:
        return label_sets.scores(means)

    def baselines(self, parts: Parts, seed: int) -> list[Baseline]:
        """The most frequent set of labels, and TF-IDF with one logistic regression per label."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        truth, scored = self.matrix(parts.train), parts.scored[1]
        sets, counts = np.unique(truth, axis=0, return_counts=True)
        majority = Baseline("most frequent label set", [sets[counts.argmax()]] * len(scored))
        features = tfidf_features(parts.train)
        # A label that all rows or none have needs no model, and logistic regression allows none.
        varied = (truth.min(0) != truth.max(0)).nonzero()[0]
        inputs, held_out = features(parts.train), features(parts.validation)

        def predictions(model: Any, inputs: Any) -> list[Any]:
            found = np.repeat(truth[:1], inputs.shape[0], 0)
            found[:, varied] = np.reshape(model.predict_proba(inputs), (inputs.shape[0], -1))[:, -len(varied) :]
            return list(found)

        best, best_value = majority.predictions, -1.0
        for c in REGULARIZATION if len(varied) else ():
            model = OneVsRestClassifier(LogisticRegression(C=c, solver="liblinear", random_state=seed))
            model.fit(inputs, truth[:, varied])
            means = self.statistics(parts.validation, predictions(model, held_out)).mean(0)[None]
            if (value := float(self.scores(means)[self.metric][0])) > best_value:
                best, best_value = predictions(model, features(scored)), value
        return [majority, Baseline("TF-IDF + logistic regression for each label", best)]

    def chosen(self, prediction: Any) -> list[str]:
        return [name for name, p in zip(self.names, prediction, strict=True) if p >= 0.5]

    def wrong(self, row: Row, prediction: Any) -> tuple[str, str] | None:
        chosen = self.chosen(prediction)
        return None if set(chosen) == set(row.target) else (", ".join(row.target), ", ".join(chosen))

    def output(self, row: Row, prediction: Any) -> dict[str, Any]:
        shown = {name: round(float(p), DIGITS) for name, p in zip(self.names, prediction, strict=True)}
        return {"labels": self.chosen(prediction), "probabilities": shown}

    def outputs(self) -> list[str]:
        return ["labels", "probabilities"]
