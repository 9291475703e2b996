"""A number for each text. The model learns standardized numbers; its last layer then returns the real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_llm.engine.errors import DataError
from mini_llm.engine.run.files import atomic_directory
from mini_llm.model import SequenceClassifier, load_model, save_model
from mini_llm.model.huggingface.directory import INDEX, WEIGHTS

from ..quality.labels import all_rows
from .encoder import Window
from .metrics import numbers
from .objectives.numbers import SquaredError
from .sequence import SequenceTask, tfidf_features
from .task import Baseline, Parts, Row
from .values import number_of

LARGEST = 1e30  # number to predict
PENALTIES = (0.1, 1.0, 10.0, 100.0)


class Regression(SequenceTask):
    """A prediction is a number. `mean` and `scale` convert logits to numbers until `fold` has changed the model."""

    name = "regression"
    problem_type = "regression"
    metrics = ("rmse", "mae", "r2", "pearson")
    smaller_is_better = ("rmse", "mae")
    objective = SquaredError()
    mean, scale = 0.0, 1.0

    @property
    def labels(self) -> list[str]:
        return [self.columns.label]

    def target(self, value: Any, place: str) -> float | None:
        return number_of(value, place)

    def encoded(self, target: Any) -> Any:
        return np.float32((target - self.mean) / self.scale)

    def fit(self, rows: Sequence[Row], path: str) -> list[str]:
        values = self.values(rows)
        if values.min() == values.max():
            raise DataError(
                f"{path}: {all_rows(len(rows))} the number {values[0]:g}, so there is nothing to learn. "
                f"Is '{self.columns.label}' the right column (data.label=COLUMN)?"
            )
        largest = float(np.abs(values).max())
        if largest > LARGEST:
            row = rows[int(np.abs(values).argmax())]
            raise DataError(
                f"{row.place}: '{self.columns.label}': {largest:g} is too large for the weights of a model, which are "
                f"32-bit numbers. Divide the numbers, or take their logarithms, so that they are below {LARGEST:g}"
            )
        return [
            f"'{self.columns.label}' is {values.mean():.4g} on average, from {values.min():.4g} to {values.max():.4g}"
        ]

    def standardize(self, rows: Sequence[Row], has_bias: bool) -> None:
        """Set `mean` and `scale`; an output layer without bias can hold a scale only."""
        values = self.values(rows)
        self.mean = float(values.mean()) if has_bias else 0.0
        # Equal numbers, left in training after others were held out, need no scale.
        self.scale = float(np.sqrt(((values - self.mean) ** 2).mean())) or 1.0

    def fold(self, directory: Path) -> None:
        """Rewrite the model in `directory` so that its logits are the real numbers."""
        model = load_model(directory, head="classifier")
        with torch.no_grad():
            layer = output_layer(model)
            layer.weight.mul_(self.scale)
            if layer.bias is not None:
                layer.bias.mul_(self.scale).add_(self.mean)
        others = [path for path in directory.iterdir() if path.is_file() and path.suffix != ".safetensors"]
        with atomic_directory(directory) as new:
            for path in others:
                if path.name not in (WEIGHTS, INDEX):
                    (new / path.name).write_bytes(path.read_bytes())
            save_model(model, new)
        self.mean, self.scale = 0.0, 1.0

    def decode(self, rows: Sequence[Row], windows: Sequence[Window], logits: Sequence[np.ndarray]) -> list[Any]:
        return (np.stack(logits)[:, 0].astype(np.float64) * self.scale + self.mean).tolist()

    def values(self, rows: Sequence[Row]) -> np.ndarray:
        return np.array([row.target for row in rows])

    def statistics(self, rows: Sequence[Row], predictions: Sequence[Any]) -> np.ndarray:
        truth = self.values(rows)
        return numbers.statistics(truth, np.array(predictions), float(truth.mean()))

    def scores(self, means: np.ndarray) -> dict[str, np.ndarray]:
        return numbers.scores(means)

    def baselines(self, parts: Parts, seed: int) -> list[Baseline]:
        """The mean, and ridge regression on TF-IDF, with the penalty chosen on validation."""
        from sklearn.linear_model import Ridge

        truth, scored = self.values(parts.train), parts.scored[1]
        features = tfidf_features(parts.train)
        inputs, held_out, expected = features(parts.train), features(parts.validation), self.values(parts.validation)
        models = [Ridge(alpha=penalty, random_state=seed).fit(inputs, truth) for penalty in PENALTIES]
        errors = [float(((model.predict(held_out) - expected) ** 2).mean()) for model in models]
        best = models[int(np.argmin(errors))]
        return [
            Baseline("mean", [float(truth.mean())] * len(scored)),
            Baseline("TF-IDF + ridge regression", best.predict(features(scored)).tolist()),
        ]

    def output(self, row: Row, prediction: Any) -> dict[str, Any]:
        return {"value": float(f"{prediction:.6g}")}

    def outputs(self) -> list[str]:
        return ["value"]


def output_layer(model: SequenceClassifier) -> torch.nn.Linear:
    return model.score if hasattr(model, "score") else model.classifier
