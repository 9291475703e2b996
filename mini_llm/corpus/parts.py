"""Which files hold the training, validation and test rows: as configured, or by their names in a folder."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_llm.corpus.paths import PARTS, SPLIT_NAME, find_files, is_hub_name, saved_dataset, table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import Row, column_settings, iter_file_rows, iter_rows
from mini_llm.engine.errors import DataError

SHOWN = 5  # file names listed in a note


@dataclass
class Source:
    """Where the rows of one part come from: `files`, or if None the `split` of the dataset `path`.

    `by_name`: the files were taken because of their names, so that one without labels is no error.
    """

    path: str
    split: str
    files: list[Path] | None = None
    by_name: bool = False
    notes: list[str] = field(default_factory=list)


def is_table(file: Path) -> bool:
    return table_format(file) is not None


def find_parts(config: Any, section: str, readable: Callable[[Path], bool] = is_table) -> dict[str, Source]:
    """Return the sources of "train" and, where there are, "validation" and "test".

    config: has path, split, validation, validation_split, test and test_split, the keys of `section` ("data"). In a
    folder with files named train.*, validation.* (valid, val, dev) or test.* that are `readable`, each is the part of
    its name; the settings come first. Raises DataError if validation or test reads the training rows.
    """
    train = find_source(config.path, config.split)
    sources = {"train": train}
    if train.files and Path(os.path.expanduser(config.path)).is_dir():
        sources = _by_name(config.path, train.files, readable)
    for part in ("validation", "test"):
        path, split = getattr(config, part), getattr(config, f"{part}_split")
        if not path and not split:
            continue
        source = find_source(path or config.path, split or config.split)
        if _shares_rows(source, sources["train"]):
            raise DataError(
                f"the {part} data ({source.path}) is part of the training data ({config.path}): its scores would be "
                f"meaningless. Set {section}.{part}=FILE, or for a Hugging Face dataset with several splits "
                f"{section}.{part}_split=NAME"
            )
        sources[part] = source
    return sources


def find_source(path: str, split: str) -> Source:
    """Return the source at `path`: a dataset, or files. Raises DataError if there are none."""
    return Source(path, split, None if is_hub_name(path) or saved_dataset(path) else find_files(path))


def find_scored(path: str, split: str, readable: Callable[[Path], bool] = is_table) -> Source:
    """Return the rows to score at `path`: of a folder whose files are taken by name, those of test, else validation."""
    source = find_source(path, split)
    if source.files is None or not Path(os.path.expanduser(path)).is_dir():
        return source
    parts = _by_name(path, source.files, readable)
    for part in ("test", "validation"):
        if part in parts:
            rest = [file for file in source.files if file not in (parts[part].files or [])]
            note = f"{path}: scored are the {part} files by name: {_names(parts[part].files or [])}"
            return Source(path, split, parts[part].files, notes=[f"{note}; not read: {_names(rest)}"])
    return source


def lacks_labels(source: Source, columns: Sequence[str], label: str, encoding: str | None = None) -> bool:
    """Return whether no row of a source that was taken by its name has a label, as in test files of benchmarks.

    There a missing label is empty, null or -1. columns: all that are looked up. A file that cannot be read counts as
    labelled: its reader explains why.
    """
    files = source.files or []
    if not source.by_name or not all(is_table(file) for file in files):
        return False
    try:
        rows = (
            row for file in files for row in iter_file_rows(file, [], "replace", ReadReport(), True, encoding, columns)
        )
        values = (row.get(label) for row in rows)
        return all(value is None or value != value or str(value).strip() in ("", "-1", "-1.0") for value in values)
    except DataError:
        return False


def _by_name(path: str, files: list[Path], readable: Callable[[Path], bool]) -> dict[str, Source]:
    """Sort the files of a folder into parts. Without a file named train, the unnamed ones are the training data."""
    parts: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        match = SPLIT_NAME.match(file.name) if readable(file) else None
        parts["" if match is None else PARTS.get(match[1].lower(), match[1].lower())].append(file)
    others = parts.pop("", [])
    if "train" not in parts:
        unnamed = [file for file in others if readable(file)]
        if not parts or not unnamed:
            return {"train": Source(path, "train", files)}
        parts["train"], others = unnamed, [file for file in others if file not in unnamed]
    if len(parts) == 1 and not others:
        return {"train": Source(path, "train", files)}
    found = {
        part: Source(str(parts[part][0]) if len(parts[part]) == 1 else path, "train", parts[part], by_name=True)
        for part in ("train", "validation", "test")
        if part in parts
    }
    chosen = "; ".join(f"{part}: {_names(parts[part])}" for part in found)
    rest = f"; not read: {_names(others)}" if others else ""
    found["train"].notes.append(f"{path}: files taken by name: {chosen}{rest}")
    return found


def _names(files: Sequence[Path]) -> str:
    more = f" and {len(files) - SHOWN:,} more" if len(files) > SHOWN else ""
    return ", ".join(file.name for file in files[:SHOWN]) + more


def _shares_rows(source: Source, train: Source) -> bool:
    """Return whether training reads the same split or file. Only datasets have splits; files are read whole."""
    if source.files is None or train.files is None:
        return (source.path, source.split) == (train.path, train.split)
    return bool({file.resolve() for file in source.files} & {file.resolve() for file in train.files})


def iter_source_rows(
    source: Source, settings: Mapping[str, str], encoding: str | None, report: ReadReport
) -> Iterator[tuple[str, int, Row]]:
    """Yield (file or dataset, row number in it from 1, row) for all rows of a source.

    settings: the columns to read, and how to name another for each of them (see column_settings).
    """
    columns = list(settings)
    with column_settings(settings):
        if source.files is None:
            for number, row in enumerate(iter_rows(source.path, source.split, columns, report=report), start=1):
                yield source.path, number, row
            return
        for path in source.files:
            rows = iter_file_rows(path, columns, "replace", report, encoding=encoding)
            for number, row in enumerate(rows, start=1):
                yield str(path), number, row
