"""Read texts to label: lines, JSONL, CSV, TSV or Parquet from a file; lines, JSONL, CSV or TSV from standard input."""

import csv
import json
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from mini_llm.engine.errors import ConfigError, DataError

T = TypeVar("T")
InputFormat = Literal["lines", "jsonl", "csv", "tsv"]
STDIN = "-"


def iter_texts(source: str, column: str, input_format: InputFormat | None = None) -> Iterator[str]:
    """Yield the text of each line or row of `source`, a file or "-" for standard input; a missing value is "".

    Reads a file as a table if its name ends in a table suffix, else line by line, blank lines included. Reads standard
    input as lines unless `input_format` is given. Replaces invalid UTF-8. Raises DataError, ConfigError.
    """
    if source == STDIN:
        return _stdin_texts(column, input_format or "lines")
    if input_format is not None:
        raise ConfigError(
            f"--input-format applies to standard input only; the format of {source} follows from its name"
        )
    return _file_texts(Path(source), column)


def _file_texts(path: Path, column: str) -> Iterator[str]:
    from mini_llm.corpus.paths import find_files, table_format
    from mini_llm.corpus.report import ReadReport
    from mini_llm.corpus.tables import iter_rows
    from mini_llm.corpus.text import iter_lines, read_text

    if not path.exists() or path.is_dir():
        find_files(str(path))  # explains what is wrong and names the nearest file
        raise DataError(f"{path}: a folder; name one file")
    if table_format(path) is not None:
        for row in iter_rows(str(path), None, [column]):
            yield _text(row[column])
    else:
        for line in iter_lines(read_text(path, "replace", ReadReport()), newline=""):
            yield line.rstrip("\r\n")


def _stdin_texts(column: str, input_format: InputFormat) -> Iterator[str]:
    # Use a separate buffer: at exit the interpreter waits for readers of sys.stdin, and a pipe may never end.
    with open(sys.stdin.fileno(), encoding="utf-8-sig", errors="replace", newline="", closefd=False) as lines:
        if input_format == "lines":
            for line in lines:
                yield line.rstrip("\r\n")
        elif input_format == "jsonl":
            yield from _json_texts(lines, column)
        else:
            yield from _csv_texts(lines, column, "," if input_format == "csv" else "\t")


def _json_texts(lines: Iterable[str], column: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"standard input: line {number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"standard input: line {number}: expected an object, found {line.strip()[:40]!r}")
        _require(column, list(row), number)
        yield _text(row[column])


def _csv_texts(lines: Iterable[str], column: str, delimiter: str) -> Iterator[str]:
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    reader = csv.DictReader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            _require(column, list(reader.fieldnames or []), number)
            yield _text(row[column])
    except csv.Error as error:
        raise DataError(f"standard input: line {reader.line_num}: {error}; check its quotes") from None


def _require(column: str, found: list[str], number: int) -> None:
    if column not in found:
        raise DataError(
            f"standard input: row {number}: no column '{column}'; the columns are: {', '.join(map(repr, found))}. "
            "Name the right one: --text COLUMN"
        )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def iter_chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield `items` in lists of 1 to `size`: as many as are available, so that a slow pipe is answered at once.

    A thread reads at most `size` items ahead. An exception of `items` is raised after the items before it.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=size)

    def read() -> None:
        try:
            for item in items:
                ready.put(("item", item))
            ready.put(("end", None))
        except BaseException as error:
            ready.put(("error", error))

    threading.Thread(target=read, daemon=True).start()
    kind = "item"
    while kind == "item":
        kind, value = ready.get()
        chunk: list[T] = []
        while kind == "item":
            chunk.append(value)
            if len(chunk) == size or ready.empty():
                break
            kind, value = ready.get()
        if chunk:
            yield chunk
        if kind == "error":
            raise value
