"""A JSON Lines file that survives a kill in the middle of a write and can be rewound to an earlier step.

A row is a JSON object; its "step", where it has one, is an integer. Any other line is damaged.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mini_llm.engine.run.files import open_regular, plain, write_atomic
from mini_llm.engine.run.state import SUFFIX, describe, parse_json, say, set_aside


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """All complete rows of a file, none if it does not exist. Damaged lines are skipped, and reported on stderr."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            rows, damaged = _parse(file.read())
    except FileNotFoundError:
        return []
    except OSError as error:
        say(f"{path}: damaged ({describe(error)}); it is left out")
        return []
    if damaged:
        say(f"{path}: {_count(damaged)} left out")
    return [row for _, row in rows]


class JsonLines:
    """Appends rows to `path`. Opening removes a line torn by a kill. Methods raise OSError."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._handle: int | None = None
        self._open()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line with a single system call. Keys keep their order; the bytes depend only on the values."""
        assert self._handle is not None, "the file is closed"
        line = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        whole = os.fstat(self._handle).st_size
        try:
            # A full disk accepts part of the line and then refuses the rest.
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError:
            os.ftruncate(self._handle, whole)
            raise

    def rewind(self, step: int) -> int:
        """Remove rows whose "step" is greater than `step`, atomically. Returns their number."""
        assert self._handle is not None, "the file is closed"
        lines, _ = _parse(self.path.read_bytes())
        kept = [line for line, row in lines if row.get("step", 0) <= step]
        if len(kept) < len(lines):
            write_atomic(self.path, b"".join(kept))
            self.close()
            self._open()
        return len(lines) - len(kept)

    def sync(self) -> None:
        """Wait until all rows are on disk."""
        if self._handle is not None:
            os.fsync(self._handle)

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> None:
        self._repair()
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)

    def _repair(self) -> None:
        """Remove a last line without newline, which a kill leaves, and damaged lines before it; a copy keeps these."""
        if self.path.exists() and not self.path.is_file():
            say(f"{self.path}: damaged (not a regular file); {set_aside(self.path)}")
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        rows, damaged = _parse(data)
        whole = b"".join(line for line, _ in rows)
        if damaged:
            copy = self.path.with_name(self.path.name + SUFFIX)
            shutil.copyfile(self.path, copy)
            say(f"{self.path}: {_count(damaged)} removed; the file as it was is {copy.name}")
            write_atomic(self.path, whole)
        elif whole != data:
            os.truncate(self.path, len(whole))


def _parse(data: bytes) -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
    """The rows with their lines, and the number of damaged lines; a last line without newline is neither."""
    rows, damaged = [], 0
    for line in data.split(b"\n")[:-1]:
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step", 0), int) and not isinstance(row.get("step"), bool):
            rows.append((line + b"\n", row))
        else:
            damaged += 1
    return rows, damaged


def _count(lines: int) -> str:
    return "1 damaged line is" if lines == 1 else f"{lines:,} damaged lines are"
