"""Write labelled rows as JSONL or CSV: the columns of the input, then what the classifier says."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from mini_llm.engine.errors import DataError
from mini_llm.engine.run.partial import State

from .rows import InputRow

OutputFormat = Literal["jsonl", "csv"]
DIGITS = 6  # of a printed probability
PREFIX = "predicted_"


class Writable(Protocol):
    """What a RowWriter writes to."""

    def write(self, text: str, /) -> Any: ...
    def flush(self) -> Any: ...


@dataclass(frozen=True)
class Layout:
    """The columns of an output, fixed by its first row: those of the input, and the added ones by meaning."""

    columns: list[str]
    added: dict[str, str]

    @classmethod
    def of(cls, columns: Sequence[str], meanings: Sequence[str]) -> "Layout":
        """An added column whose name the input has already is called predicted_NAME."""
        added = {}
        for meaning in meanings:
            name = meaning
            while name in columns:
                name = PREFIX + name
            added[meaning] = name
        return cls(list(columns), added)


@dataclass(frozen=True)
class LabelState(State):
    """What an unfinished output file remembers: its layout, and counts to report."""

    truncated: int = 0
    abstained: int = 0
    layout: Layout | None = None


class RowWriter:
    """Writes one row per input row.

    JSONL: {"row": number, ...columns of the input, "label", "probability", "probabilities": {name: p}} with the
    `top_k` best labels, best first. CSV: the same with one column p(NAME) per label, blank except for the `top_k` best.
    With `threshold`, a column "abstain" is added, and a row whose best probability is lower has an empty label. A row
    without text has empty values.
    """

    def __init__(
        self,
        file: Writable,
        output_format: OutputFormat,
        names: Sequence[str],
        top_k: int | None = None,
        threshold: float | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.file, self.names, self.threshold = file, list(names), threshold
        self.shown = len(self.names) if top_k is None else min(top_k, len(self.names))
        self.table = csv.writer(file, lineterminator="\n") if output_format == "csv" else None
        self.layout = layout
        self.abstained = 0

    def write(self, row: InputRow, probabilities: np.ndarray | None) -> None:
        """Write a row with its probabilities, (labels,), or None for a row without text. Raises DataError."""
        if self.layout is None:
            self.begin(list(row.columns))
        layout = self.layout
        assert layout is not None
        self._check(row, layout)
        best: dict[int, float] = {}
        label = probability = abstain = None
        if probabilities is not None:
            order = np.argsort(-probabilities, kind="stable")[: self.shown].tolist()
            best = {index: round(float(probabilities[index]), DIGITS) for index in order}
            label, probability = self.names[order[0]], best[order[0]]
            if self.threshold is not None:
                abstain = float(probabilities[order[0]]) < self.threshold
                label = None if abstain else label
                self.abstained += abstain
        values: dict[str, Any] = {"label": label, "probability": probability}
        if self.threshold is not None:
            values["abstain"] = abstain
        if self.table is None:
            values["probabilities"] = {self.names[index]: value for index, value in best.items()}
            columns = {name: json_value(value) for name, value in row.columns.items()}
            added = {layout.added[meaning]: value for meaning, value in values.items()}
            tree = {layout.added["row"]: row.number, **columns, **added}
            self.file.write(json.dumps(tree, ensure_ascii=False, default=str) + "\n")
            return
        cells = [csv_value(row.columns.get(name)) for name in layout.columns]
        scores = [best.get(index, "") for index in range(len(self.names))]
        self.table.writerow([row.number, *cells, *map(csv_value, values.values()), *scores])

    def begin(self, columns: Sequence[str]) -> None:
        """Fix the columns of the output, unless that has been done, and write the header of a CSV file."""
        if self.layout is not None:
            return
        abstain = [] if self.threshold is None else ["abstain"]
        probabilities = ["probabilities"] if self.table is None else [f"p({name})" for name in self.names]
        self.layout = Layout.of(columns, ["row", "label", "probability", *abstain, *probabilities])
        if self.table is not None:
            first, *others = self.layout.added.values()
            self.table.writerow([first, *columns, *others])

    def _check(self, row: InputRow, layout: Layout) -> None:
        new = [name for name in row.columns if name not in layout.columns]
        if new and self.table is not None:
            raise DataError(
                f"row {row.number}: the key '{new[0]}' is not among the keys of the first row, which are the columns "
                "of the CSV output. Write JSONL instead: --format jsonl"
            )
        taken = [name for name in new if name in layout.added.values()]
        if taken:
            raise DataError(
                f"row {row.number}: the key '{taken[0]}' is also the name of an added column, because the first row "
                "lacks it. Rename the key, or add it to the first row"
            )


def json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_value(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else value
