"""Read labelled texts of any source and bring them into splits. Errors name the file, the rows and the fix."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from mini_llm.corpus.parts import Source, find_parts, iter_source_rows, lacks_labels
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import Row as TableRow
from mini_llm.engine.errors import DataError

from .data_config import BUILT_IN, BY_FILE, DataConfig, check_columns
from .examples import Example, Splits
from .made.passages import is_plain_text, load_passages
from .made.stdlib import load_stdlib_task
from .quality.damage import ENCODING, REPLACEMENT, check_label, damaged_texts
from .quality.duplicates import compare
from .quality.labels import check_labels, label_name, label_names, listed, unseen_labels
from .quality.preparation import prepare
from .quality.splitting import fold_note, take_fold
from .quality.unlabelled import read_unlabelled


class Row(NamedTuple):
    """A row with a text and the name of its label; `number` counts the data rows of its file from 1."""

    file: str
    number: int
    text: str
    label: str
    group: str


def load_examples(config: DataConfig, with_test: bool = True) -> Splits:
    """Load the training, validation and (if given) test examples, without leaks, and the unlabelled texts.

    Without `with_test`, test files are not opened.

    Sorts label names, numbers by value. See quality.preparation for what is dropped and held out. Raises DataError for
    a missing column, rows without text or label, a single label, and labels in validation or test that training does
    not have.
    """
    if config.path == BUILT_IN:
        splits = load_stdlib_task(config.seed)
    elif is_plain_text(config):
        splits = load_passages(config)
    else:
        splits = read_splits(config, with_test and config.fold is None)
    if config.fold is not None:
        splits = score_fold(splits, config)
    if not with_test:
        splits.test = None
    splits = prepare(splits, config)
    if config.unlabelled:
        splits.unlabelled = read_unlabelled(config, splits)
    return splits


def read_splits(config: DataConfig, with_test: bool = True) -> Splits:
    """Read all rows as they are. `validation` is empty if the configuration names none."""
    check_columns(config.text, None, config.label)
    sources = find_parts(config, "data")
    notes = list(sources["train"].notes)
    train = read_rows(config, sources["train"], notes)
    names = label_names({row.label for row in train})
    check_labels(names, len(train), config.path, config.label)
    ids = {name: index for index, name in enumerate(names)}
    parts = {"train": to_examples(train, ids)}
    for part in ("test", "validation") if with_test else ("validation",):
        if part in sources and (examples := read_more(config, sources[part], ids, notes)) is not None:
            parts[part] = examples
    description = f"{config.label} of {config.text} in {config.path}"
    return Splits(names, parts["train"], parts.get("validation", []), parts.get("test"), description, notes)


def score_fold(splits: Splits, config: DataConfig) -> Splits:
    """Return `splits` with one fold of the training rows as test data. Raises DataError if there are too few rows."""
    chosen = take_fold(splits.train, config, compare({"train": splits.train}, config.near_duplicates))
    scored = set(chosen.tolist())
    train = [example for row, example in enumerate(splits.train) if row not in scored]
    notes = [
        *splits.notes,
        fold_note(config, len(scored), len(train)),
    ]
    return replace(splits, train=train, test=[splits.train[row] for row in chosen], notes=notes)


def read_rows(config: DataConfig, source: Source, notes: list[str]) -> list[Row]:
    """Read all rows of one source. Raises DataError for rows without text or label and for an empty source."""
    rows: list[Row] = []
    missing: dict[str, list[str]] = defaultdict(list)
    damaged: list[tuple[str, str]] = []
    total, several = 0, source.files is not None and len(source.files) > 1
    by_column = config.group not in (None, BY_FILE)
    report = ReadReport(option=ENCODING)
    for file, number, row in iter_source(config, source, report):
        total += 1
        place = f"{file} row {number}"
        text, label = row[config.text], label_name(row[config.label], f"{place}: '{config.label}'")
        text = None if text is None or text != text else str(text)
        if text is None or not text.strip():
            missing[config.text].append(place if several else str(number))
            continue
        if label is None:
            missing[config.label].append(place if several else str(number))
            continue
        check_label(label, place, file)
        if REPLACEMENT in text:
            damaged.append((file, place))
        group = row[config.group] if by_column else file if config.group == BY_FILE else None
        # A row without a group is its own.
        rows.append(Row(file, number, text, label, "" if group is None else str(group)))
    for column, places in missing.items():
        if config.on_null == "stop":
            raise DataError(
                f"{source.path}: column '{column}' is empty in {len(places):,} of {total:,} rows: "
                f"{listed(places, kind='' if several else 'row')}. "
                "Fill or remove them, or skip such rows with data.on_null=skip"
            )
        notes.append(f"{source.path}: {len(places):,} rows without '{column}' skipped")
    notes += [*report.notes, *damaged_texts(damaged)]
    if not rows:
        raise DataError(f"{source.path}: no labelled rows. It needs columns '{config.text}' and '{config.label}'")
    return rows


def iter_source(config: DataConfig, source: Source, report: ReadReport) -> Iterator[tuple[str, int, TableRow]]:
    """Yield (file or dataset, row number in it from 1, row) for all rows of a source."""
    settings = {config.text: "data.text=COLUMN", config.label: "data.label=COLUMN"}
    if config.group not in (None, BY_FILE):
        settings.setdefault(str(config.group), "data.group=COLUMN")
    return iter_source_rows(source, settings, config.encoding, report)


def read_more(config: DataConfig, source: Source, ids: dict[str, int], notes: list[str]) -> list[Example] | None:
    """Read the validation or test examples; None for a file that was taken by its name and holds no labels.

    Raises DataError for labels that training does not have.
    """
    if lacks_labels(source, [config.text, config.label], config.label, config.encoding):
        notes.append(f"{source.path}: not used: it has no labels in '{config.label}'")
        return None
    rows = read_rows(config, source, notes)
    unseen = defaultdict(list)
    for row in rows:
        if row.label not in ids:
            unseen[row.label].append(row.number)
    if unseen:
        raise unseen_labels(unseen, list(ids), source.path, config.path)
    return to_examples(rows, ids)


def to_examples(rows: list[Row], ids: dict[str, int]) -> list[Example]:
    return [Example(row.text, ids[row.label], f"{row.file} row {row.number}", row.group) for row in rows]
