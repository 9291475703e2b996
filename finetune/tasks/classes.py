"""What pairs and ordinal classes share: one label of several for a text or a pair of texts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..quality.labels import check_labels, label_name, label_names, rare_labels, similar_names
from .encoder import Window
from .sequence import SequenceTask, check_known, softmax, tfidf_features
from .task import Row

REGULARIZATION = (1.0, 10.0, 100.0)
DIGITS = 6


class ClassTask(SequenceTask):
    """One label of several. A prediction is the probability of each label (C,)."""

    def target(self, value: Any, place: str) -> str | None:
        return label_name(value, place)

    def encoded(self, target: Any) -> Any:
        return np.int64(self.names.index(target))

    def stratum(self, row: Row) -> int:
        return self.names.index(row.target)

    def fit(self, rows: Sequence[Row], path: str) -> list[str]:
        counts = Counter(row.target for row in rows)
        self.names = label_names(counts)
        check_labels(self.names, len(rows), path, self.columns.label)
        return [*similar_names(counts), *rare_labels(self.names, self.ids(rows).tolist())]

    def check(self, rows: Sequence[Row], path: str, train: str) -> None:
        check_known(self.names, [(row.place, [row.target]) for row in rows], path, train)

    def ids(self, rows: Sequence[Row]) -> np.ndarray:
        return np.array([self.names.index(row.target) for row in rows])

    def decode(self, rows: Sequence[Row], windows: Sequence[Window], logits: Sequence[np.ndarray]) -> list[Any]:
        return list(softmax(np.stack(logits)))

    def choice(self, probabilities: np.ndarray) -> int:
        """Return the id of the predicted label."""
        return int(probabilities.argmax())

    def wrong(self, row: Row, prediction: Any) -> tuple[str, str] | None:
        chosen = self.names[self.choice(prediction)]
        return None if chosen == row.target else (row.target, chosen)

    def output(self, row: Row, prediction: Any) -> dict[str, Any]:
        chosen = self.choice(prediction)
        shown = {name: round(float(p), DIGITS) for name, p in zip(self.names, prediction, strict=True)}
        return {"label": self.names[chosen], "probability": shown[self.names[chosen]], "probabilities": shown}

    def outputs(self) -> list[str]:
        return ["label", "probability", "probabilities"]

    def frequencies(self, train: Sequence[Row], scored: Sequence[Row]) -> list[Any]:
        """Return the share of each label in training as the prediction for every row."""
        shares = np.bincount(self.ids(train), minlength=len(self.names)) / len(train)
        return [shares] * len(scored)

    def linear(self, train: Sequence[Row], validation: Sequence[Row], scored: Sequence[Row], seed: int) -> list[Any]:
        """Return the probabilities of TF-IDF with logistic regression, regularization chosen on validation."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        features = tfidf_features(train)
        inputs, labels, held_out = features(train), self.ids(train), features(validation)
        models = [
            OneVsRestClassifier(LogisticRegression(C=c, solver="liblinear", random_state=seed)).fit(inputs, labels)
            for c in REGULARIZATION
        ]

        def probabilities(model: Any, inputs: Any) -> list[Any]:
            found = np.zeros((inputs.shape[0], len(self.names)))
            found[:, model.classes_] = model.predict_proba(inputs)
            return list(found)

        values = [self.value(validation, probabilities(model, held_out)) for model in models]
        return probabilities(models[int(np.argmax(values))], features(scored))

    def value(self, rows: Sequence[Row], predictions: Sequence[Any]) -> float:
        """Return the score that selects a model, larger is better."""
        means = self.statistics(rows, predictions).mean(0)[None]
        sign = -1 if self.metric in self.smaller_is_better else 1
        return sign * float(self.scores(means)[self.metric][0])
