"""Data classes of labelled data: examples and splits."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Example(NamedTuple):
    """One labelled text; `label` indexes `Splits.names`, `source` is its origin ('reviews.csv row 12').

    Examples of one `group` stay on one side of a split; "" is no group.
    """

    text: str
    label: int
    source: str
    group: str = ""


@dataclass
class Splits:
    """Labelled data for training and scoring. If `test` is None, final scores are computed on `validation`.

    `notes` are the lines to print before training, `findings` their counts, for a JSON file.
    """

    names: list[str]
    train: list[Example]
    validation: list[Example]
    test: list[Example] | None = None
    description: str = ""
    notes: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    findings: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> list[tuple[str, int, int, int]]:
        """Return the number of examples per label: rows (label, in train, in validation, in test)."""
        parts = self.train, self.validation, self.test or []
        train, validation, test = (Counter(example.label for example in part) for part in parts)
        return [(name, train[i], validation[i], test[i]) for i, name in enumerate(self.names)]
