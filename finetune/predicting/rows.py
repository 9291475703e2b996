"""Read the rows to label. A file and standard input go through the same readers (mini_llm/corpus/tables.py, text.py).

A file is a table if its name ends in .csv, .tsv, .jsonl, .json or .parquet (also compressed), else one text per line.
Standard input and named pipes are lines, or what --input-format names.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from mini_llm.corpus.encoding import check_encoding
from mini_llm.corpus.paths import find_files, table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.stream import InputStream
from mini_llm.corpus.tables import iter_file_rows
from mini_llm.corpus.text import iter_lines, read_text
from mini_llm.engine.errors import ConfigError, DataError

T = TypeVar("T")
InputFormat = Literal["lines", "jsonl", "csv", "tsv"]
OnNull = Literal["stop", "empty", "skip"]
STDIN = "-"
LINE = "text"  # the column of a line of plain text
JSON = (".json", ".jsonl", ".ndjson")


class InputRow(NamedTuple):
    """One row: its number from 1, its text (None if it has none), and all of its columns, the text among them."""

    number: int
    text: str | None
    columns: dict[str, Any]


def is_stream(source: str) -> bool:
    """Return whether `source` is standard input, a named pipe or a device, which cannot be read twice."""
    return source == STDIN or (Path(source).exists() and not Path(source).is_file() and not Path(source).is_dir())


def iter_input(
    source: str,
    column: str,
    input_format: InputFormat | None = None,
    on_null: OnNull | None = None,
    report: ReadReport | None = None,
    encoding: str | None = None,
) -> Iterator[InputRow]:
    """Yield the rows of `source`, a file or "-" for standard input, with the text of `column`.

    A null, an empty text and one of whitespace only are no text. on_null: "stop" raises DataError (default for tables),
    "empty" yields the row with text None (default for lines), "skip" leaves it out; row numbers count it.
    encoding: of text and tables; None: UTF-8, or by the byte order mark. Replaces invalid bytes by U+FFFD and counts
    them in `report`. Raises ConfigError, DataError.
    """
    report = report or ReadReport()
    place: Path | InputStream = Path(os.path.expanduser(source))
    if is_stream(source):
        place = _open_stream(source, input_format)
    elif input_format is not None:
        raise ConfigError(f"--input-format applies to streams only; the format of {source} follows from its name")
    elif not place.is_file():
        find_files(str(place))  # explains what is wrong and names the nearest file
        raise DataError(f"{source}: a folder or several files; name one file")
    try:
        check_encoding(encoding)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    report.option = "--encoding"
    if table_format(place) is None:
        lines = map(_without_end, iter_lines(read_text(place, "replace", report, encoding), newline=""))
        rows: Iterator[tuple[Any, dict[str, Any]]] = ((line, {LINE: line}) for line in lines)
        return _with_texts(rows, str(place), on_null or "empty", "line {} is blank")
    rows = _table_rows(place, column, report, encoding)
    return _with_texts(rows, str(place), on_null or "stop", f"row {{}} has no text in the column '{column}'", column)


def _without_end(line: str) -> str:
    return line.rstrip("\r\n")


def _open_stream(source: str, input_format: InputFormat | None) -> InputStream:
    kind = None if input_format in (None, "lines") else f".{input_format}"
    if source == STDIN:
        # Use a separate buffer: at exit the interpreter waits for readers of sys.stdin, and a pipe may never end.
        return InputStream(open(sys.stdin.fileno(), "rb", closefd=False), "standard input", kind)
    try:
        return InputStream(open(source, "rb"), source, kind)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from None


def _table_rows(
    place: Path | InputStream, column: str, report: ReadReport, encoding: str | None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield (value of `column`, all columns) of each row. Raises DataError if no row has the column."""
    first, found = None, False
    for row in iter_file_rows(place, [], "replace", report, nested=True, encoding=encoding, names=[column]):
        first = list(row) if first is None else first
        found = found or column in row
        # The rows of other formats all have the same columns.
        if not found and table_format(place) not in JSON:
            break
        yield row.get(column), row
    if first is not None and not found:
        raise DataError(
            f"{place}: no column '{column}'; the columns are: {', '.join(map(repr, first)) or 'none'}. "
            "Name the right one: --text COLUMN"
        )


def _with_texts(
    rows: Iterator[tuple[Any, dict[str, Any]]], name: str, on_null: OnNull, problem: str, column: str | None = None
) -> Iterator[InputRow]:
    """Yield the rows of a table with this column, or lines; `problem` describes row {} without a text."""
    for number, (value, columns) in enumerate(rows, 1):
        if isinstance(value, (list, dict, bytes)):
            raise DataError(f"{name}: row {number}: the text is a {type(value).__name__}, not text or a number")
        text = None if value is None or value != value else str(value)
        if text is not None and text.strip():
            yield InputRow(number, text, columns)
        elif on_null == "empty":
            yield InputRow(number, None, columns)
        elif on_null == "stop":
            mend = "Fill it in" if column in (None, *columns) else "Name another column with --text COLUMN"
            raise DataError(
                f"{name}: {problem.format(number)} (its columns: {', '.join(map(repr, columns)) or 'none'}). "
                f"{mend}, or set --on-null empty (such rows keep their place and get no label) or --on-null skip"
            )


def characters(row: InputRow) -> int:
    """Return about how many characters a row holds in memory."""
    return sum(len(value) if isinstance(value, str) else 50 for value in row.columns.values())


def iter_chunks(
    items: Iterator[T],
    size: int,
    full: bool = False,
    weigh: Callable[[T], int] = lambda item: 0,
    limit: int = 16 << 20,
) -> Iterator[list[T]]:
    """Yield `items` in lists of 1 to `size` that weigh `limit` together at most, unless a single item weighs more.

    A list takes as many items as are available, so that a slow pipe is answered at once; with `full`, as many as fit,
    so that lists are the same every time. A thread reads ahead by one list at most. An exception of `items` is raised
    after the items before it.
    """
    waiting: deque[tuple[T, int]] = deque()
    changed = threading.Condition()
    weight, ended, failure = 0, False, None

    def read() -> None:
        nonlocal weight, ended, failure
        try:
            for item in items:
                with changed:
                    while len(waiting) >= size or weight > limit:
                        changed.wait()
                    waiting.append((item, weigh(item)))
                    weight += waiting[-1][1]
                    changed.notify()
        except BaseException as error:
            failure = error
        with changed:
            ended = True
            changed.notify()

    threading.Thread(target=read, daemon=True).start()
    chunk: list[T] = []
    held = 0
    while True:
        with changed:
            while not waiting and not ended:
                changed.wait()
            if not waiting:
                break
            while waiting and len(chunk) < size and (not chunk or held + waiting[0][1] <= limit):
                item, one = waiting.popleft()
                chunk.append(item)
                held, weight = held + one, weight - one
            complete = len(chunk) == size or bool(waiting) or not full
            changed.notify()
        if complete:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
    if failure is not None:
        raise failure
