"""What labelled data is once it has been read: examples, and their splits."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Example(NamedTuple):
    """One labelled text; `label` indexes `Splits.names`, `source` says where it came from ('reviews.csv row 12')."""

    text: str
    label: int
    source: str


@dataclass
class Splits:
    """Labelled data for training and scoring. `test` is None when there is none: scores are then of `validation`."""

    names: list[str]
    train: list[Example]
    validation: list[Example]
    test: list[Example] | None = None
    description: str = ""
    notes: list[str] = field(default_factory=list)

    def counts(self) -> list[tuple[str, int, int, int]]:
        """Rows (label, in train, in validation, in test)."""
        parts = [Counter(example.label for example in part) for part in (self.train, self.validation, self.test or [])]
        return [(name, *(part[index] for part in parts)) for index, name in enumerate(self.names)]
