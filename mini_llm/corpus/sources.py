"""Turn a source into documents, each a re-iterable sequence of text chunks, so that no long file is held whole."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mini_llm.corpus.config import STDLIB, TEXT_SETTING, SourceConfig
from mini_llm.corpus.paths import find_files, is_hub_name, saved_dataset, table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.separators import notice_separator, split_documents
from mini_llm.corpus.stdlib import iter_stdlib_files
from mini_llm.corpus.tables import Row, column_settings, iter_file_rows, iter_rows, json_layout
from mini_llm.corpus.text import is_binary, read_text
from mini_llm.engine.errors import DataError


@dataclass(frozen=True)
class TextFile:
    """A plain text file as one document of any length; every iteration reads the file again."""

    path: Path
    on_invalid: str
    report: ReadReport
    encoding: str | None = None

    def __iter__(self) -> Iterator[str]:
        return read_text(self.path, self.on_invalid, self.report, self.encoding)


class Origin(NamedTuple):
    """Where a document came from; `row` counts from 1 and is 0 for a whole file."""

    file: str
    row: int = 0

    def __str__(self) -> str:
        return f"{self.file} row {self.row:,}" if self.row else self.file


def read_source(
    source: SourceConfig, on_invalid: str, report: ReadReport, separator: str | None = None
) -> Iterator[tuple[Origin, Iterable[str]]]:
    """Yield the documents of a source with their origins: text files, or what `separator` ends in them, or rows of
    tables. Raises DataError.

    `datasets` reads only Hub names and save_to_disk folders. Its text reader yields lines, not documents, and reads
    whatever follows the first 10 MB of a line at once; tables.py explains why table files are read here too.
    """
    if source.path == STDLIB:
        for name, text in iter_stdlib_files():
            report.files += 1
            yield Origin(name), [text]
    elif is_hub_name(source.path) or saved_dataset(source.path):
        rows = iter_rows(source.path, source.split, [source.text], source.streaming, on_invalid, report)
        yield from _texts(source.path, rows, source, report)
    else:
        for path in readable_files(source, report):
            if is_table(path, source):
                rows = iter_file_rows(path, [source.text], on_invalid, report, encoding=source.encoding)
                yield from _texts(str(path), rows, source, report)
            else:
                report.files += 1
                file = TextFile(path, on_invalid, report, source.encoding)
                if separator is not None:
                    for row, text in enumerate(split_documents(file, separator), start=1):
                        yield Origin(str(path), row), [text]
                else:
                    notice_separator(path, source.encoding, path == Path(os.path.expanduser(source.path)), report)
                    yield Origin(str(path)), file


def readable_files(source: SourceConfig, report: ReadReport) -> Iterator[Path]:
    """Yield the files of a source, counting and skipping binary files in a folder or glob. Raises DataError if none
    are left."""
    paths = find_files(source.path)
    named = paths == [Path(os.path.expanduser(source.path))]
    kept = 0
    for path in paths:
        if not named and source.encoding is None and table_format(path) != ".parquet" and is_binary(path):
            report.skip_binary(str(path))
            continue
        kept += 1
        yield path
    if not kept:
        raise DataError(
            f"{source.path}: none of its {len(paths)} files is text (for example {paths[0]}); name text files or tables"
        )


def is_table(path: Path, source: SourceConfig) -> bool:
    """Return whether a file is read row by row. A .json file without rows (package.json) in a folder counts as text."""
    kind = table_format(path)
    if kind == ".json" and path != Path(os.path.expanduser(source.path)):
        return json_layout(path, source.encoding) is not None
    return kind is not None


def _texts(
    file: str, rows: Iterable[Row], source: SourceConfig, report: ReadReport
) -> Iterator[tuple[Origin, list[str]]]:
    with column_settings({source.text: TEXT_SETTING}):
        for number, row in enumerate(rows, start=1):
            if (value := row[source.text]) is None:
                report.empty += 1
            else:
                yield Origin(file, number), [str(value)]
