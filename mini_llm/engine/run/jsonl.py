"""A JSON Lines file that survives a kill in the middle of a write and can be rewound to an earlier step."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mini_llm.engine.run.files import plain, write_atomic


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """All complete rows of a file, none if it does not exist. Torn and damaged lines are skipped."""
    path = Path(path)
    return [row for _, row in _lines(path.read_bytes())] if path.is_file() else []


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
        lines = list(_lines(self.path.read_bytes()))
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
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)

    def _repair(self) -> None:
        """Remove a last line without newline, and damaged lines before it (a disk fault)."""
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = b"".join(line for line, _ in _lines(data))
        if whole == data:
            return
        if data.startswith(whole):
            os.truncate(self.path, len(whole))
        else:
            write_atomic(self.path, whole)


def _lines(data: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield line, row
