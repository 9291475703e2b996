"""Read JSON and JSONL files: one object per line, a list of objects, or an object that holds such a list or columns."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mini_llm.corpus.paths import table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.stream import InputStream
from mini_llm.corpus.text import head, iter_lines, read_text
from mini_llm.engine.errors import DataError

# Size of a row as a str (1, 2 or 4 bytes per character, set by the widest one); its parsed text takes as much again.
MAX_JSON_BYTES = 416 << 20
SEPARATOR = re.compile(r"[\s,]*")
# Keys that name the rows of an object with several lists.
ROWS = ("data", "rows", "examples", "records", "items", "instances", "results", "train")


def json_layout(path: Path | InputStream, encoding: str | None = None) -> str | None:
    """Return how a JSON file stores rows: "array" (a list of objects), "lines" (one object per line) or None."""
    if table_format(path) != ".json":
        return "lines"
    start = head(path, encoding).lstrip()
    if re.match(r"\[\s*(\{|\]|$)", start):
        return "array"
    line, _, rest = start.partition("\n")
    if not line.startswith("{"):
        return None
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return None if rest else "lines"  # the first line is longer than the head that was read
    return "lines"


def iter_json_objects(
    path: Path | InputStream, columns: Sequence[str], on_invalid: str, report: ReadReport, encoding: str | None
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON file, or the rows inside its only object; see rows_of_object. Raises DataError."""
    layout = json_layout(path, encoding)
    chunks = read_text(path, on_invalid, report, encoding)
    if layout is None:
        yield from _whole_object(path, chunks, columns)
        return
    values = _json_array(path, chunks) if layout == "array" else _json_lines(path, chunks)
    if layout == "lines" and table_format(path) == ".json":
        first = list(islice(values, 2))
        if len(first) == 1 and (rows := rows_of_object(first[0][1], columns)) is not None:
            yield from rows
            return
        values = chain(first, values)
        del first
    for place, value in values:
        if not isinstance(value, dict):
            raise DataError(f'{path}: {place}: expected an object such as {{"text": ...}}, found {str(value)[:40]!r}')
        yield value


def rows_of_object(tree: Any, columns: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the rows that one JSON object holds, or None.

    {"data": [{"text": ...}, ...]}, whatever the key is called and what else it holds; {"text": [...], "label": [...]};
    and what pandas writes: {"columns": [...], "data": [[...], ...]}, {"text": {"0": ...}}, {"0": {"text": ...}}.
    """
    if not isinstance(tree, dict):
        return None
    names, data = tree.get("columns"), tree.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(names, row, strict=False)) for row in data]
    lists = {key: value for key, value in tree.items() if isinstance(value, list)}
    tables = [key for key, value in lists.items() if value and all(isinstance(row, dict) for row in value)]
    chosen = tables if len(tables) == 1 else [key for key in ROWS if key in tables][:1]
    if chosen and not set(columns) <= tree.keys():
        # The datasets server wraps each row.
        return [row["row"] if isinstance(row.get("row"), dict) else row for row in lists[chosen[0]]]
    values = list(tree.values())
    if values and len(lists) == len(tree) and len({len(value) for value in values}) == 1:
        return [dict(zip(tree, row, strict=True)) for row in zip(*values, strict=True)]
    if values and all(isinstance(value, dict) for value in values):
        if set(columns) <= tree.keys():
            keys = dict.fromkeys(key for column in columns for key in tree[column])
            return [{name: column.get(key) for name, column in tree.items()} for key in keys]
        return values
    return None


def _whole_object(path: Path | InputStream, chunks: Iterator[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    text = ""
    for chunk in chunks:
        text += chunk
        if sys.getsizeof(text) > MAX_JSON_BYTES:
            raise DataError(f"{path}: one object of over {MAX_JSON_BYTES >> 20} MiB; write one row per line as .jsonl")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: neither a list of JSON objects nor one JSON object per line, and not valid JSON: {error}"
        ) from None
    rows = rows_of_object(tree, columns)
    if rows is None:
        raise DataError(
            f"{path}: neither a list of JSON objects nor one JSON object per line, and not an object that holds such a "
            "list or columns of equal length"
        )
    return rows


def _json_lines(path: Path | InputStream, chunks: Iterator[str]) -> Iterator[tuple[str, Any]]:
    decode = json.JSONDecoder().decode
    number = 0
    for line in iter_lines(chunks, newline="\n"):
        number += 1  # enumerate() would keep a reference to the line
        if line.isspace():
            continue
        if sys.getsizeof(line) > MAX_JSON_BYTES:
            raise DataError(
                f"{path}: line {number} takes over {MAX_JSON_BYTES >> 20} MiB; move its text to a .txt file"
            )
        try:
            value = decode(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: not valid JSON: {error}") from None
        del line
        yield f"line {number}", value


def _json_array(path: Path | InputStream, chunks: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a top-level list without holding the whole list."""
    decoder = json.JSONDecoder()
    buffer, place, number, more = next(chunks).lstrip()[1:], 0, 1, 1
    while True:
        separator = SEPARATOR.match(buffer, place)
        place = separator.end() if separator else place
        if buffer.startswith("]", place):
            return
        try:
            value, place = decoder.raw_decode(buffer, place)
        except (ValueError, RecursionError) as error:
            # The element continues in the next chunks (read twice as many each time), or the JSON is invalid.
            rest = "".join(islice(chunks, more))
            if not rest or sys.getsizeof(buffer) > MAX_JSON_BYTES:
                raise DataError(f"{path}: element {number}: not valid JSON: {error}") from None
            buffer, place, more = buffer[place:] + rest, 0, more * 2
            continue
        yield f"element {number}", value
        number, more = number + 1, 1
