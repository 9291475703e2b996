"""Training progress on stderr: a bar in a terminal, otherwise a plain line every few seconds."""

import math
import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text


class Progress:
    """Context manager that shows how far a run is. Ranks with `main_process=False` show nothing.

    total: number of steps, None while it is unknown. start: steps done before this launch; the time left is estimated
    from the steps after it. interval: seconds between lines when `stream` (stderr) is not a terminal.
    """

    def __init__(
        self,
        total: int | None,
        main_process: bool = True,
        start: int = 0,
        interval: float = 10.0,
        stream: TextIO | None = None,
    ):
        self.total, self.step = total, start
        self._main_process, self._interval, self._stream = main_process, interval, stream or sys.stderr
        self._start, self._started = start, time.monotonic()
        self._fields: dict[str, float | None] = {}
        self._printed_step, self._printed_at = -1, -math.inf
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        console = Console(file=self._stream)
        # Ask the stream, not Rich: FORCE_COLOR would make Rich draw a bar into a log file.
        if self._main_process and self._stream.isatty() and not console.is_dumb_terminal:
            # A narrow terminal cuts the text at its right end, so the most important fields come first.
            text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
            columns = (MofNCompleteColumn(), BarColumn(bar_width=12), text)
            self._bar = Bar(*columns, console=console, refresh_per_second=4, expand=True)
            self._task = self._bar.add_task("", total=self.total, completed=self.step, text="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._main_process and kind is None and self._fields and self._printed_step != self.step:
            self._print_line()

    def update(self, step: int, **fields: float | None) -> None:
        """Record that `step` steps are done.

        Optional fields: loss, lr, tokens_per_second, mfu (between 0 and 1), eta (seconds). A field keeps its value
        until it is given again; None removes it. Without eta, the time left is estimated from the steps so far.
        """
        self.step = step
        if not self._main_process:
            return
        self._fields |= fields
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self.describe())
        elif step == self.total or time.monotonic() - self._printed_at >= self._interval:
            self._print_line()

    def set_total(self, total: int) -> None:
        """Set the number of steps, which a time budget changes during the run."""
        self.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def log(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(Text(text), soft_wrap=True)
        elif self._main_process:
            print(text, file=self._stream, flush=True)

    def describe(self) -> str:
        """The fields as text: "1:20 left  loss 3.214  12.3k tok/s  MFU 31%  lr 1.0e-03"."""
        values = {"eta": self._time_left(), **{key: value for key, value in self._fields.items() if value is not None}}
        formats = {
            "eta": lambda seconds: f"{human_time(seconds)} left",
            "loss": "loss {:.3f}".format,
            "tokens_per_second": lambda rate: f"{human_number(rate)} tok/s",
            "mfu": "MFU {:.0%}".format,
            "lr": "lr {:.1e}".format,
        }
        return "  ".join(form(values[key]) for key, form in formats.items() if values.get(key) is not None)

    def _time_left(self) -> float | None:
        if self.total is None or self.step <= self._start:
            return None
        return max(0, self.total - self.step) * (time.monotonic() - self._started) / (self.step - self._start)

    def _print_line(self) -> None:
        self._printed_step, self._printed_at = self.step, time.monotonic()
        total = "" if self.total is None else f"/{self.total} ({self.step / max(1, self.total):.0%})"
        print(f"step {self.step}{total}  {self.describe()}".rstrip(), file=self._stream, flush=True)


def human_number(value: float) -> str:
    """Three significant digits and a unit: 950, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # From 0.9995 on, three digits round to 1.00: 999,600 is 1.00M, not 1000k.
        if value >= 0.9995 * limit:
            return f"{value / limit:#.3g}".rstrip(".") + unit
    return f"{value:.0f}"


def human_time(seconds: float) -> str:
    """Minutes and seconds, with hours and days if needed: 0:09, 1:20, 2:03:04, 3d 4:05:06."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days}d {clock}" if days else clock
