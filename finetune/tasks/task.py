"""What a task is: how a row becomes token ids and labels, and how logits become a prediction and a score."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mini_llm.engine.loss import Objective

from ..data_config import DataConfig
from .encoder import Encoder, Window
from .values import text_of


@dataclass(frozen=True)
class Row:
    """One labelled row. `place` is its origin ('train.csv row 3'), `target` its label in the form of the task.

    `pair` is the second text, or the question of a text. `words`, the characters from and to of each word, is for
    tasks that label words. Rows of one `group` stay on one side of a split; "" is no group.
    """

    place: str
    text: str
    target: Any = None
    pair: str | None = None
    words: tuple[tuple[int, int], ...] = ()
    group: str = ""


class Columns(NamedTuple):
    """The columns that a task reads; `pair` and `label` may be absent."""

    text: str
    pair: str | None
    label: str


@dataclass
class Parts:
    """The rows of a run. Without `test`, final scores are computed on `validation`."""

    train: list[Row]
    validation: list[Row]
    test: list[Row] | None
    notes: list[str] = field(default_factory=list)

    @property
    def scored(self) -> tuple[str, list[Row]]:
        return ("validation", self.validation) if self.test is None else ("test", self.test)


class Baseline(NamedTuple):
    """What a simple model predicts for the scored rows."""

    name: str
    predictions: list[Any]


class Task(ABC):
    """One task. Its instance holds what training decided: the labels, and the settings that `settings` returns.

    head: of mini_llm.model.HEADS. metric: the score that selects the best weights.
    """

    name: ClassVar[str]
    head: ClassVar[str] = "classifier"
    problem_type: ClassVar[str] = "single_label_classification"
    metrics: ClassVar[tuple[str, ...]]
    smaller_is_better: ClassVar[tuple[str, ...]] = ()
    objective: Objective | None = None

    @property
    def by_token(self) -> bool:
        """Whether there is one label per token."""
        return self.head == "tokens"

    def trimmed(self, logits: np.ndarray, window: Window) -> np.ndarray:
        """Return the logits of a window without those of padding."""
        return logits if self.head == "classifier" else logits[: len(window.tokens)]

    def __init__(self, config: DataConfig, names: Sequence[str] = ()) -> None:
        self.config = config
        self.names = list(names)

    @property
    def metric(self) -> str:
        return self.metrics[0]

    @property
    def columns(self) -> Columns:
        return Columns(self.config.text, self.config.text_pair, self.config.label)

    @property
    def input_column(self) -> str:
        """The column of the text to predict from."""
        return self.columns.text

    @property
    def labels(self) -> list[str]:
        """The label names for config.json."""
        return self.names

    def settings(self) -> dict[str, Any]:
        """What a trained model needs beside its weights to predict; `restore` gets it back."""
        return {}

    def restore(self, settings: dict[str, Any]) -> None:
        """Set what `settings` returned in training."""
        return

    @abstractmethod
    def parse(self, values: dict[str, Any], place: str) -> Row | str:
        """Return the row of a table, or the name of the column that is empty. Raises DataError naming `place`."""

    @abstractmethod
    def fit(self, rows: Sequence[Row], path: str) -> list[str]:
        """Learn the labels from the training rows and return notes for the user. Raises DataError."""

    def check(self, rows: Sequence[Row], path: str, train: str) -> None:
        """Raise DataError for labels that the training data (`train`) do not have."""
        return

    def names_of(self, row: Row) -> Sequence[str]:
        """Return the names of the labels of a row; none for numbers and answers."""
        return [row.target] if isinstance(row.target, str) else row.target if isinstance(row.target, list) else []

    def stratum(self, row: Row) -> int:
        """Rows with equal numbers are divided evenly between training and validation."""
        return 0

    @abstractmethod
    def windows(self, rows: Sequence[Row], encoder: Encoder) -> list[Window]:
        """Encode the rows, each as one window or several, with labels where rows have targets."""

    @abstractmethod
    def decode(self, rows: Sequence[Row], windows: Sequence[Window], logits: Sequence[np.ndarray]) -> list[Any]:
        """Return the prediction for each row from the logits of each window."""

    @abstractmethod
    def statistics(self, rows: Sequence[Row], predictions: Sequence[Any]) -> np.ndarray:
        """Return the statistics of each row (N, F) from which `scores` computes all scores."""

    @abstractmethod
    def scores(self, means: np.ndarray) -> dict[str, np.ndarray]:
        """Return the scores (R,) from mean statistics (R, F)."""

    @abstractmethod
    def baselines(self, parts: Parts, seed: int) -> list[Baseline]:
        """Return the predictions of simple models for the scored rows."""

    def unlabelled(self, values: dict[str, Any], place: str) -> Row | None:
        """Return a row to predict, or None where it has no text. Raises DataError naming `place`."""
        columns = self.columns
        text = text_of(values, columns.text, place)
        pair = None if columns.pair is None else text_of(values, columns.pair, place)
        return None if text is None or (columns.pair and pair is None) else Row(place, text, None, pair)

    def wrong(self, row: Row, prediction: Any) -> tuple[str, str] | None:
        """Return (label, prediction) to show where the prediction is wrong, else None."""
        return None

    @abstractmethod
    def output(self, row: Row, prediction: Any) -> dict[str, Any]:
        """Return what `predict` adds to a row."""

    @abstractmethod
    def outputs(self) -> list[str]:
        """Return the keys of `output`."""
