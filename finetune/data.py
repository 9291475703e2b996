"""Read, check and split labelled texts. Errors name the file, the rows and the fix."""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from mini_llm.corpus.paths import find_files, is_hub_name, saved_dataset
from mini_llm.corpus.tables import iter_rows
from mini_llm.engine.errors import DataError

from .data_config import BUILT_IN, DataConfig
from .examples import Example, Splits
from .stdlib_task import load_stdlib_task

SHOWN = 5  # values listed in an error
# A column with more labels than this, most of them used once, does not hold classes.
MANY_LABELS = 50


class Row(NamedTuple):
    """A row with a text and the name of its label; `number` counts data rows from 1."""

    number: int
    text: str
    label: str


def load_examples(config: DataConfig) -> Splits:
    """Load the training, validation and (if given) test examples.

    Sorts label names, numbers by value. Raises DataError for a missing column, rows without text or label, a single
    label, and labels in validation or test that training does not have.
    """
    if config.path == BUILT_IN:
        return load_stdlib_task(config.seed)
    notes: list[str] = []
    train = read_rows(config, config.path, config.split, notes)
    names = label_names({row.label for row in train})
    check_labels(names, train, config)
    ids = {name: index for index, name in enumerate(names)}
    examples = to_examples(train, ids, config.path)
    test = None
    if config.test or config.test_split:
        test = read_more(config, "test", ids, notes)
    if config.validation or config.validation_split:
        validation = read_more(config, "validation", ids, notes)
    else:
        examples, validation = split_validation(examples, config.validation_fraction, config.seed)
        if not validation:
            raise DataError(
                f"{config.path}: no label has two different texts, so no text can be held out for validation. "
                "Add data, or set data.validation=FILE"
            )
        notes.append(f"{len(validation):,} of {len(validation) + len(examples):,} examples held out for validation")
    notes += overlap_notes(examples, validation, test)
    return Splits(names, examples, validation, test, f"{config.label} of {config.text} in {config.path}", notes)


def read_rows(config: DataConfig, path: str, split: str, notes: list[str]) -> list[Row]:
    """Read all rows of one source. Raises DataError for rows without text or label and for an empty source."""
    rows, missing = [], defaultdict(list)
    number = 0
    for number, row in enumerate(iter_rows(path, split, [config.text, config.label]), start=1):
        text, label = row[config.text], label_name(row[config.label], f"{path} row {number}: '{config.label}'")
        text = None if text is None or text != text else str(text)
        if text is None or not text.strip():
            missing[config.text].append(number)
        elif label is None:
            missing[config.label].append(number)
        else:
            rows.append(Row(number, text, label))
    for column, numbers in missing.items():
        if config.on_null == "stop":
            raise DataError(
                f"{path}: column '{column}' is empty in {len(numbers):,} of {number:,} rows: {listed(numbers)}. "
                "Fill or remove them, or skip such rows with data.on_null=skip"
            )
        notes.append(f"{path}: {len(numbers):,} rows without '{column}' skipped")
    if not rows:
        raise DataError(f"{path}: no labelled rows. It needs columns '{config.text}' and '{config.label}'")
    return rows


def read_more(config: DataConfig, part: str, ids: dict[str, int], notes: list[str]) -> list[Example]:
    """Read the validation or test examples. Raises DataError for labels that training does not have."""
    path = getattr(config, part) or config.path
    split = getattr(config, f"{part}_split") or config.split
    if shares_rows(config, path, split):
        raise DataError(
            f"the {part} data ({path}) is part of the training data ({config.path}): its scores would be meaningless. "
            f"Set data.{part}=FILE, or for a Hugging Face dataset with several splits data.{part}_split=NAME"
        )
    rows = read_rows(config, path, split, notes)
    unseen = defaultdict(list)
    for row in rows:
        if row.label not in ids:
            unseen[row.label].append(row.number)
    if unseen:
        found = "; ".join(f"'{label}' in {listed(unseen[label])}" for label in label_names(unseen)[:SHOWN])
        more = f"; and {len(unseen) - SHOWN} more labels" if len(unseen) > SHOWN else ""
        raise DataError(
            f"{path}: labels missing from the training data ({config.path}): {found}{more}. "
            f"Known labels: {listed(list(ids), 20, '')}. Correct them, or add such examples to the training data"
        )
    return to_examples(rows, ids, path)


def shares_rows(config: DataConfig, path: str, split: str) -> bool:
    """Return whether training reads the same split or file. Only datasets have splits; files are read whole."""
    if any(is_hub_name(source) or saved_dataset(source) for source in (path, config.path)):
        return (path, split) == (config.path, config.split)
    files = [{file.resolve() for file in find_files(source)} for source in (path, config.path)]
    return bool(files[0] & files[1])


def to_examples(rows: list[Row], ids: dict[str, int], path: str) -> list[Example]:
    return [Example(row.text, ids[row.label], f"{path} row {row.number}") for row in rows]


def label_name(value: Any, place: str) -> str | None:
    """Convert a label of any type to its name: 3, 3.0 and "3" give "3", True gives "True"; strips whitespace.

    Returns None for null, NaN and the empty string. Raises DataError naming `place` for lists and other containers.
    """
    if value is None:
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
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


def check_labels(names: list[str], rows: list[Row], config: DataConfig) -> None:
    if len(names) < 2:
        raise DataError(
            f"{config.path}: all {len(rows):,} rows have the label '{names[0]}'. Classification needs at least "
            f"two labels; is '{config.label}' the right column (data.label=COLUMN)?"
        )
    if len(names) > max(MANY_LABELS, len(rows) / 2):
        raise DataError(
            f"{config.path}: column '{config.label}' has {len(names):,} different values in {len(rows):,} rows "
            f"({listed(names, 3, '')}). Name the column that holds the class: data.label=COLUMN"
        )


def split_validation(examples: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out `fraction` of each label. Return (training, validation), both in the order of `examples`.

    Keeps equal texts together. The choice depends on the texts and the seed, not on their order. A label keeps at least
    one text in training, and has one in validation if it has two different texts.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[example.text.strip()].append(index)
    by_label: dict[int, list[str]] = defaultdict(list)
    for text, members in groups.items():
        by_label[examples[members[0]].label].append(text)
    chosen: set[int] = set()
    for texts in by_label.values():
        texts.sort(key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest())
        wanted, taken = fraction * sum(len(groups[text]) for text in texts), 0
        for text in texts[:-1]:
            if taken and taken + len(groups[text]) / 2 > wanted:
                break
            chosen.update(groups[text])
            taken += len(groups[text])
    training = [example for index, example in enumerate(examples) if index not in chosen]
    return training, [examples[index] for index in sorted(chosen)]


def overlap_notes(train: list[Example], validation: list[Example], test: list[Example] | None) -> list[str]:
    """Return a note for each scored split that shares texts with the training or validation data."""
    trained, validated = ({example.text.strip() for example in part} for part in (train, validation))
    notes = []
    for part, examples, seen, where in (
        ("validation", validation, trained, "training"),
        ("test", test or [], trained, "training"),
        ("test", test or [], validated, "validation"),
    ):
        shared = sum(example.text.strip() in seen for example in examples)
        if shared:
            notes.append(f"{shared:,} of {len(examples):,} {part} texts are also in the {where} data")
    return notes


def listed(values: list[Any], limit: int = SHOWN, kind: str = "row") -> str:
    """Format values as 'rows 1, 2, 3 and 7 more'."""
    shown = ", ".join(str(value) for value in values[:limit])
    prefix = f"{kind}{'s' if len(values) > 1 else ''} " if kind else ""
    return prefix + shown + (f" and {len(values) - limit:,} more" if len(values) > limit else "")
