"""Progress of labelling on stderr, and how long batches took."""

import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from mini_llm.engine.run.progress import human_number, human_time

MEASURED = 100_000  # batches whose times are kept


class BatchTimes:
    """Seconds that each of the last batches took."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.seconds = deque(values, MEASURED)

    def append(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def __str__(self) -> str:
        """'P50 12.3 ms, P95 15.1 ms, P99 30.2 ms'."""
        found = np.percentile(np.array(self.seconds), [50, 95, 99]) if self.seconds else [0, 0, 0]
        return ", ".join(f"P{p} {1000 * value:.1f} ms" for p, value in zip((50, 95, 99), found, strict=True))


class RowProgress:
    """Context manager that shows how many rows are labelled.

    A bar if `stream` (stderr) is a terminal and rows are not printed to the same one; else a line every `interval`
    seconds. total: bytes of the input, None if unknown.
    """

    def __init__(
        self, total: int | None, bar: bool = True, interval: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.total, self.rows, self.bytes, self.skipped = total, 0, 0, 0
        self._stream, self._interval = stream or sys.stderr, interval
        self._started = self._printed = time.monotonic()
        console = Console(file=self._stream)
        self._lines = not self._stream.isatty()
        self._bar = None
        self._task = TaskID(0)
        if bar and self._stream.isatty() and not console.is_dumb_terminal:
            self._bar = Bar(BarColumn(bar_width=20), TextColumn("{task.fields[text]}"), console=console)

    def __enter__(self) -> "RowProgress":
        if self._bar is not None:
            self._task = self._bar.add_task("", total=self.total, text="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def update(self, rows: int, bytes_read: int) -> None:
        """Record that `rows` rows are labelled by this command and `bytes_read` bytes of the input are read."""
        if self.skipped == 0:
            self.skipped = bytes_read  # of rows labelled before; the first chunk is a small part
        self.rows, self.bytes = rows, bytes_read
        if self._bar is not None:
            self._bar.update(self._task, completed=bytes_read, text=str(self))
        elif self._lines and time.monotonic() - self._printed >= self._interval:
            self._printed = time.monotonic()
            print(self, file=self._stream, flush=True)

    def __str__(self) -> str:
        """'12,345 texts, 410 texts/s, 31 %, 1:20 left'."""
        parts = [f"{self.rows:,} texts", f"{human_number(self.rows / max(self.seconds, 1e-9))} texts/s"]
        if self.total:
            parts.append(f"{min(self.bytes / self.total, 1):.0%}")
            if self.bytes > self.skipped:
                left = (self.total - self.bytes) / (self.bytes - self.skipped) * self.seconds
                parts.append(f"{human_time(left)} left")
        return ", ".join(parts)
