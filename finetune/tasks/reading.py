"""Read the rows of a task from tables, CoNLL files and SQuAD's JSON, and divide them into parts."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mini_llm.corpus.hub import iter_dataset, load_hub, load_saved
from mini_llm.corpus.parts import Source, find_parts, is_table, lacks_labels
from mini_llm.corpus.paths import is_hub_name, table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import column_settings, iter_file_rows
from mini_llm.corpus.text import head
from mini_llm.engine.errors import DataError

from ..data_config import BY_FILE, check_columns
from ..examples import Example
from ..quality.damage import ENCODING, REPLACEMENT, check_label, damaged_texts
from ..quality.labels import listed
from ..quality.normal_form import normal_form
from ..quality.splitting import fold_note, split_validation, take_fold
from .conll import iter_sentences
from .squad import iter_questions
from .task import Parts, Row, Task


def read_parts(task: Task) -> Parts:
    """Read training, validation and test rows and teach `task` its labels.

    Holds out data.validation_fraction where no validation data is given, and drops training rows whose texts stand in
    the validation or test data too. Raises DataError.
    """
    config = task.config
    check_columns(*task.columns)
    sources = find_parts(config, "data", is_readable(task))
    notes = list(sources["train"].notes)
    train = read_rows(task, sources["train"], notes)
    others = {}
    for part in ("validation", "test"):
        if part not in sources or (part == "test" and config.fold is not None):
            continue
        if not_labelled(task, sources[part]):
            notes.append(f"{sources[part].path}: not used: it has no labels in '{task.columns.label}'")
        else:
            others[part] = read_rows(task, sources[part], notes)
    notes += task.fit(train, config.path)
    for part, rows in others.items():
        task.check(rows, sources[part].path, config.path)
    if config.fold is not None:
        scored = set(take_fold(proxies(task, train), config).tolist())
        others["test"] = [row for index, row in enumerate(train) if index in scored]
        train = [row for index, row in enumerate(train) if index not in scored]
        notes.append(fold_note(config, len(scored), len(train)))
    if config.leaks == "drop":
        train = without_leaks(task, train, [row for rows in others.values() for row in rows], notes)
    validation = others.get("validation", [])
    if not validation:
        train, validation = hold_out(task, train)
    return Parts(train, validation, others.get("test"), notes)


def is_readable(task: Task) -> Callable[[Path], bool]:
    """Return which files of a folder may hold rows: tables, and for words with tags any text (CoNLL)."""
    return (lambda file: True) if task.head == "tokens" else is_table


def not_labelled(task: Task, source: Source) -> bool:
    """Return whether a file that was taken by its name has no labels; see lacks_labels."""
    if any(is_squad(file) for file in source.files or []):
        return False
    columns = [column for column in task.columns if column]
    return lacks_labels(source, columns, task.columns.label, task.config.encoding)


def read_rows(task: Task, source: Source, notes: list[str]) -> list[Row]:
    """Read all rows of one source. Raises DataError for empty ones, unless data.on_null = skip, and for no rows."""
    config = task.config
    rows: list[Row] = []
    missing: dict[str, list[str]] = defaultdict(list)
    damaged: list[tuple[str, str]] = []
    total, report = 0, ReadReport(option=ENCODING)
    for file, place, values in iter_values(task, source, report):
        total += 1
        row = task.parse(values, place)
        if isinstance(row, str):
            missing[row].append(place)
            continue
        for label in task.names_of(row):
            check_label(label, place, file)
        if REPLACEMENT in row.text or REPLACEMENT in (row.pair or ""):
            damaged.append((file, place))
        rows.append(row)
    for column, places in missing.items():
        if config.on_null == "stop":
            raise DataError(
                f"{source.path}: '{column}' is empty in {len(places):,} of {total:,} rows: {listed(places, kind='')}. "
                "Fill or remove them, or skip such rows with data.on_null=skip"
            )
        notes.append(f"{source.path}: {len(places):,} rows without '{column}' skipped")
    notes += [*report.notes, *damaged_texts(damaged)]
    if not rows:
        wanted = ", ".join(f"'{column}'" for column in task.columns if column)
        raise DataError(f"{source.path}: no labelled rows. It needs the columns {wanted}")
    return rows


def iter_values(task: Task, source: Source, report: ReadReport) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (file or dataset, place, {column: value}) for every row of a source; a place is 'train.csv row 3'."""
    config, (text, pair, label) = task.config, task.columns
    settings = {text: "data.text=COLUMN", pair: "data.text_pair=COLUMN", label: "data.label=COLUMN"}
    if config.group not in (None, BY_FILE):
        settings.setdefault(config.group, "data.group=COLUMN")
    columns = [column for column in settings if column]
    with column_settings({column: settings[column] for column in columns}):
        if source.files is None:
            hub = is_hub_name(source.path)
            dataset = load_hub(source.path, source.split, False) if hub else load_saved(source.path, source.split)
            for number, values in enumerate(iter_dataset(dataset, columns, source.path), 1):
                yield source.path, f"{source.path} row {number}", values
            return
        for path in source.files:
            if task.head == "tokens" and table_format(path) is None:
                rows = iter_sentences(path, task.columns.text, task.columns.label, report, config.encoding)
            elif task.head == "questions" and is_squad(path):
                rows = iter_questions(path, *task.columns, report, config.encoding)
            else:
                found = iter_file_rows(path, columns, "replace", report, nested=True, encoding=config.encoding)
                rows = ((f"{path} row {number}", values) for number, values in enumerate(found, 1))
            for place, values in rows:
                yield str(path), place, {**values, BY_FILE: str(path)} if config.group == BY_FILE else values


def is_squad(path: Path) -> bool:
    """Return whether a file is one JSON object of articles and their paragraphs, and not a table of rows."""
    if path.suffix.lower() != ".json":
        return False
    start = head(path)
    return start.lstrip().startswith("{") and re.search(r'"(paragraphs|qas)"\s*:', start) is not None


def without_leaks(task: Task, train: list[Row], others: Sequence[Row], notes: list[str]) -> list[Row]:
    """Return the training rows whose text, with its pair, is not among `others`.

    Raises DataError if none is left, or none of a label.
    """
    path = task.config.path
    known = {key_of(row) for row in others}
    kept = [row for row in train if key_of(row) not in known]
    if len(kept) < len(train):
        notes.append(
            f"{len(train) - len(kept):,} training rows dropped whose texts are in the validation or test data too "
            "(data.leaks=keep keeps them)"
        )
    if not kept:
        raise DataError(f"{path}: every training row stands in the validation or test data too. Give other files")
    left = {name for row in kept for name in task.names_of(row)}
    if lost := [name for name in task.names if name not in left and any(name in task.names_of(row) for row in train)]:
        raise DataError(
            f"{path}: every training row with these labels stands in the validation or test data too: "
            f"{listed(lost, kind='')}. Score other rows, or keep them in training with data.leaks=keep; the scores are "
            "then too high"
        )
    return kept


def hold_out(task: Task, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return (training, validation). Equal texts, or rows of one group, stay together. Raises DataError."""
    train, validation = split_validation(proxies(task, rows), task.config.validation_fraction, task.config.seed)
    if not train or not validation:
        if task.config.group and len({row.group for row in rows}) == 1:
            raise DataError(
                f"{task.config.path}: all rows are of one group (data.group={task.config.group}), so none can be held "
                "out for validation. Give data.validation=FILE, or another column of groups"
            )
        raise DataError(
            f"{task.config.path}: {len(rows):,} rows are too few to hold out some for validation. "
            "Add rows, or give data.validation=FILE"
        )
    return [rows[int(proxy.source)] for proxy in train], [rows[int(proxy.source)] for proxy in validation]


def proxies(task: Task, rows: Sequence[Row]) -> list[Example]:
    """Return an example for each row, whose `source` is its index, to divide the rows by."""
    return [Example(key_of(row), task.stratum(row), str(index), row.group) for index, row in enumerate(rows)]


def key_of(row: Row) -> str:
    return json.dumps([normal_form(row.text), row.pair and normal_form(row.pair)])
