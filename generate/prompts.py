"""Read prompts from arguments, standard input and files, as the characters that were typed."""

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_llm.corpus.paths import nearest, table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.stream import InputStream
from mini_llm.corpus.tables import iter_file_rows
from mini_llm.corpus.text import iter_lines, read_text
from mini_llm.engine.errors import ConfigError, DataError

STDIN = "-"
REPLACED = "\ufffd"
COLUMN = "prompt"
FORMATS = ("lines", "jsonl", "csv", "tsv")
# Escapes that stand for a character which is hard to type in a shell.
ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t"}


def valid_text(argument: str) -> str:
    """An argument whose bytes are UTF-8, whatever the locale. Raises ConfigError."""
    try:
        argument.encode()
        return argument
    except UnicodeEncodeError:
        # Bytes that the locale has no characters for arrive as lone surrogates.
        with contextlib.suppress(UnicodeDecodeError):
            return os.fsencode(argument).decode("utf-8")
    raise ConfigError(f"{argument!r}: this argument is not valid UTF-8")


def unescape(text: str) -> str:
    r"""`text` with \n, \r and \t replaced by the characters that they stand for."""
    return re.sub(r"\\[nrt]", lambda match: ESCAPES[match[0]], text)


def read_stdin(encoding: str | None = None) -> str:
    """All of standard input without one final newline; empty where it is closed or a terminal. Raises DataError."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    text = "".join(_texts(_standard_input(None), encoding))
    return text.removesuffix("\n").removesuffix("\r")


def read_prompts(source: str, input_format: str | None = None, encoding: str | None = None) -> list[str | None]:
    """The prompts of a file, or of "-" for standard input: one per row of a table, otherwise one per line.

    A table (.jsonl, .json, .csv, .tsv, .parquet, also .gz) has the column `prompt`. A blank line is None. The encoding
    is UTF-8 or follows from the byte order mark. Raises ConfigError, DataError.
    """
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ConfigError(f"unknown encoding '{encoding}'; Python's names are such as cp1252 or utf-16") from None
    place: Path | InputStream = Path(os.path.expanduser(source))
    if source == STDIN:
        if sys.stdin is None:
            raise DataError("--file -: standard input is closed")
        place = _standard_input(input_format)
    elif input_format is not None:
        raise ConfigError(f"--input-format applies to --file - only; the format of {source} follows from its name")
    elif place.is_dir() or not place.exists():
        problem = "a folder" if place.is_dir() else f"no such file. {nearest(place)}".rstrip(" .")
        raise DataError(f"--file {source}: {problem}; name a text file with one prompt a line, or a table")
    elif not place.is_file():
        place = InputStream(place.open("rb"), source)  # a pipe, which can be read only once
    prompts: list[str | None]
    if table_format(place) is None:
        lines = (line.removesuffix("\n").removesuffix("\r") for line in iter_lines(_texts(place, encoding), "\n"))
        prompts = [line or None for line in lines]
    else:
        prompts = [*_column(place, encoding)]
    if not any(prompts):
        raise DataError(f"--file {source}: no prompt in it; write one a line, or rows with the key '{COLUMN}'")
    return prompts


def check_output(output: Path, source: str | None) -> None:
    """Raise ConfigError unless the texts for the prompts of `source` can be written to `output`."""
    if source is None:
        raise ConfigError(f"--output {output}: only the texts of --file go to a file; use > {output} for others")
    if output.exists() and not output.is_file():
        raise ConfigError(f"--output {output}: not a regular file; leave it out to write to standard output")
    if output.exists() and os.path.exists(source) and output.samefile(source):
        raise ConfigError(f"--output {output}: this is the file of the prompts; choose another name")


def _standard_input(input_format: str | None) -> InputStream:
    kind = None if input_format in (None, "lines") else f".{input_format}"
    raw: Any = sys.stdin.buffer
    return InputStream(raw, "standard input", kind)


def _texts(place: Path | InputStream, encoding: str | None) -> Iterator[str]:
    report, line = ReadReport(), 1
    for text in read_text(place, "replace", report, encoding):
        if report.replaced_bytes:
            _refuse_replaced(
                place, report, f", the first in line {line + text.partition(REPLACED)[0].count(chr(10)):,}"
            )
        line += text.count("\n")
        yield text


def _column(place: Path | InputStream, encoding: str | None) -> Iterator[str]:
    report = ReadReport()
    for number, row in enumerate(iter_file_rows(place, [COLUMN], "replace", report, encoding=encoding), start=1):
        prompt = row[COLUMN]
        if not isinstance(prompt, str) or not prompt:
            problem = f"the value of '{COLUMN}' is {prompt!r}, not a text" if prompt else f"no text in '{COLUMN}'"
            raise DataError(f"{place}: row {number}: {problem}; give every row a prompt")
        yield prompt
    _refuse_replaced(place, report)


def _refuse_replaced(place: Path | InputStream, report: ReadReport, where: str = "") -> None:
    """Raise DataError if bytes were replaced: the prompt would be another one."""
    if report.replaced_bytes:
        raise DataError(
            f"{place}: {report.replaced_bytes:,} bytes are not valid UTF-8{where}. "
            "Name the encoding, for example --encoding cp1252"
        )
