"""Names of labels: one name for a value of any type, their order, and names that look wrong."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mini_llm.engine.errors import DataError

from .normal_form import normal_form

# A column with more labels than this, most of them used once, does not hold classes.
MANY_LABELS = 50
SHOWN = 5  # values listed in a message


def label_name(value: Any, place: str) -> str | None:
    """Convert a label of any type to its name: 3, 3.0 and "3" give "3", True gives "True"; strips whitespace.

    Returns None for null, NaN and the empty string. Raises DataError naming `place` for infinity, lists and other
    containers.
    """
    if value is None:
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            raise DataError(f"{place} is infinite: a label must be one string or number")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, (list, tuple, dict, set, bytes)):
        raise DataError(f"{place} holds {type(value).__name__} {str(value)[:60]}: a label must be one string or number")
    return str(value).strip() or None


def label_names(labels: Iterable[str]) -> list[str]:
    """Sort labels by value if all are numbers, else in natural order ("grade 2" before "grade 10")."""
    labels = list(labels)
    if all(re.fullmatch(r"[-+]?\d+(\.\d+)?", label) for label in labels):
        return sorted(labels, key=lambda label: (float(label), label))

    def parts(label: str) -> tuple[list[tuple[int, int, str]], str]:
        split = re.split(r"([0-9]+)", label)
        return [(0, int(p), "") if p.isdecimal() and p.isascii() else (1, 0, p.lower()) for p in split if p], label

    return sorted(labels, key=parts)


def check_labels(names: Sequence[str], rows: int, path: str, column: str) -> None:
    """Raise DataError if the label names of `rows` training rows are one only, or too many to be classes."""
    if len(names) < 2:
        raise DataError(
            f"{path}: {all_rows(rows)} the label '{names[0]}'. Classification needs at least "
            f"two labels; is '{column}' the right column (data.label=COLUMN)?"
        )
    if len(names) > max(MANY_LABELS, rows / 2):
        raise DataError(
            f"{path}: column '{column}' has {len(names):,} different values in {rows:,} rows "
            f"({listed(names, 3, '')}). Name the column that holds the class: data.label=COLUMN"
        )


def all_rows(count: int) -> str:
    """Return 'all 40 rows have'."""
    return "the only row has" if count == 1 else f"all {count:,} rows have"


def unseen_labels(unseen: Mapping[str, Sequence[int]], known: Sequence[str], path: str, train: str) -> DataError:
    """Return the error for labels of `path` that training (`train`) does not have; `unseen`: label -> rows."""
    likely = {normal_form(name): name for name in known}
    parts = []
    for label in label_names(unseen)[:SHOWN]:
        close = likely.get(normal_form(label))
        hint = f" (differs from '{close}' only in case, white space or Unicode form)" if close is not None else ""
        parts.append(f"'{label}' in {listed(unseen[label])}{hint}")
    more = f"; and {len(unseen) - SHOWN} more labels" if len(unseen) > SHOWN else ""
    return DataError(
        f"{path}: labels missing from the training data ({train}): {'; '.join(parts)}{more}. "
        f"Known labels: {listed(known, 20, '')}. Correct them, or add such examples to the training data"
    )


def similar_names(counts: Mapping[str, int]) -> list[str]:
    """Return a note for each set of label names that differ only in case, white space or Unicode form."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        # Compatibility forms too: a full-width digit is no other class.
        groups[normal_form(unicodedata.normalize("NFKC", name))].append(name)
    notes = []
    for names in groups.values():
        if len(names) > 1:
            shown = " and ".join(f"{name!a} ({counts[name]:,} rows)" for name in names)
            notes.append(
                f"labels {shown} differ only in case, white space or Unicode form: they are trained as different "
                "classes; give them one name if they mean the same"
            )
    return notes


def rare_labels(names: Sequence[str], labels: Iterable[int]) -> list[str]:
    """Return a note on labels with a single training example."""
    counts = Counter(labels)
    once = [name for index, name in enumerate(names) if counts[index] == 1]
    if not once:
        return []
    return [f"{len(once)} of {len(names)} labels have one training example only: {listed(once, SHOWN, '')}"]


def listed(values: Sequence[Any], limit: int = SHOWN, kind: str = "row") -> str:
    """Format values as 'rows 1, 2, 3 and 7 more'."""
    shown = ", ".join(str(value) for value in values[:limit])
    prefix = f"{kind}{'s' if len(values) > 1 else ''} " if kind else ""
    return prefix + shown + (f" and {len(values) - limit:,} more" if len(values) > limit else "")
