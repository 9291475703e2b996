"""A file of JSON lines that survives being killed while a line is written, and that can be rewound."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mini_llm.engine.run.files import plain, write_atomic


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """All whole rows of a file; none when it does not exist. A torn or damaged line is left out."""
    path = Path(path)
    return [row for _, row in _lines(path.read_bytes())] if path.is_file() else []


class JsonLines:
    """Append rows to `path`; opening repairs a line torn by a kill. Raises OSError where the disk does."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._handle: int | None = None
        self._open()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line with a single system call. Key order is the caller's; the bytes depend on the values alone."""
        assert self._handle is not None, "the file is closed"
        line = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        whole = os.fstat(self._handle).st_size
        try:
            # A full disk takes a part of the line; the rest then fails.
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError:
            os.ftruncate(self._handle, whole)
            raise

    def rewind(self, step: int) -> int:
        """Drop the rows whose "step" is greater than `step`, atomically. Returns how many went."""
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
        """Cut a last line without its newline; a damaged line before it (a disk fault) goes too."""
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
