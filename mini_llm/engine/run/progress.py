"""Progress of a number of steps: a bar on a terminal, a plain line now and then without one. Always on stderr."""

import math
import sys
import time
from types import TracebackType
from typing import ClassVar, TextIO

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import ProgressColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_WIDEST_BAR = 40
_SHORTEST_BAR = 8
# What a narrow terminal keeps longest comes first.
_PRIORITY = ("eta", "loss", "tokens_per_second", "mfu", "lr")


class Progress:
    """Show `total` steps, None while it is not known; a context manager. Ranks other than the main one
    (`main_process=False`) show nothing.

    `start` is the number of steps done already (a resumed run): the time left is measured from there. Without a
    terminal one line appears every `interval` seconds, and one for the last step.
    """

    _shown: ClassVar["Progress | None"] = None

    def __init__(
        self,
        total: int | None,
        description: str = "",
        main_process: bool = True,
        start: int = 0,
        interval: float = 10.0,
        stream: TextIO | None = None,
    ):
        self.total = total
        self.step = start
        self._description = description
        self._main_process = main_process
        self._interval = interval
        self._stream = sys.stderr if stream is None else stream
        self._fields: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        self._last_line = -math.inf
        self._printed = -1
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._start = start

    def __enter__(self) -> "Progress":
        self._first = (self._start, time.monotonic())
        if not self._main_process:
            return self
        Progress._shown = self
        console = Console(file=self._stream)
        # A terminal in fact, not by FORCE_COLOR: a bar in a log file is noise.
        if self._stream.isatty() and not console.is_dumb_terminal:
            self._bar = Bar(_Line(self, console), console=console, refresh_per_second=4)
            self._task = self._bar.add_task(self._description, total=self.total, completed=self.step)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if Progress._shown is self:
            Progress._shown = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._main_process and error is None and self._fields and self._printed != self.step:
            self._print_line()

    def update(self, step: int, **fields: float | None) -> None:
        """`step` steps are done. Fields: loss, lr, tokens_per_second, mfu (a share of 1), eta (seconds); all optional.

        A field keeps its value until it is given again; None removes it. Without `eta` the time left follows from the
        steps so far.
        """
        self.step = step
        if not self._main_process:
            return
        self._fields = {**self._fields, **fields}
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        elif step == self.total or time.monotonic() - self._last_line >= self._interval:
            self._print_line()

    def set_total(self, total: int) -> None:
        """Change the number of steps, for a run whose time is given and not its length."""
        self.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    @staticmethod
    def log(text: str) -> None:
        """Print a line to stderr, above the bar where there is one."""
        shown = Progress._shown
        if shown is not None and shown._bar is not None:
            shown._bar.console.print(Text(text), soft_wrap=True)
        else:
            stream = sys.stderr if shown is None else shown._stream
            print(text, file=stream, flush=True)

    def describe(self, width: int | None = None) -> str:
        """The fields as text: "loss 3.214  lr 1.0e-03  12.3k tok/s  MFU 31%  1:20 left"; those that fit in `width`."""
        parts = self._parts()
        for name in reversed(_PRIORITY):
            text = "  ".join(parts.values())
            if width is None or len(text) <= width:
                break
            parts.pop(name, None)
        return "  ".join(parts.values())

    def _parts(self) -> dict[str, str]:
        shown = {name: value for name, value in self._fields.items() if value is not None}
        parts = {}
        if "loss" in shown:
            parts["loss"] = f"loss {shown['loss']:.3f}"
        if "lr" in shown:
            parts["lr"] = f"lr {shown['lr']:.1e}"
        if "tokens_per_second" in shown:
            parts["tokens_per_second"] = f"{human_number(shown['tokens_per_second'])} tok/s"
        if "mfu" in shown:
            parts["mfu"] = f"MFU {100 * shown['mfu']:.0f}%"
        left = shown["eta"] if "eta" in shown else self._time_left()
        if left is not None:
            parts["eta"] = f"{human_time(left)} left"
        return parts

    def _time_left(self) -> float | None:
        if self.total is None or self._first is None or self.step <= self._first[0]:
            return None
        step, since = self._first
        return max(0, self.total - self.step) * (time.monotonic() - since) / (self.step - step)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        self._printed = self.step
        done = str(self.step)
        if self.total is not None:
            done += f"/{self.total} ({100 * self.step / self.total if self.total else 100:.0f}%)"
        title = f"{self._description}: " if self._description else ""
        line = f"{title}step {done}  {self.describe()}"
        print(line.rstrip(), file=self._stream, flush=True)


class _Line(ProgressColumn):
    """The whole line, made only when it is drawn: the bar takes what the text leaves."""

    def __init__(self, progress: Progress, console: Console):
        super().__init__()
        self._progress = progress
        self._console = console

    def render(self, task: Task) -> Table:
        total = "" if task.total is None else f"/{int(task.total)}"
        head = f"{task.description} {int(task.completed)}{total}".strip()
        room = self._console.width - len(head) - 1
        fields = self._progress.describe(room - 2 if room < 2 * _SHORTEST_BAR else room - _SHORTEST_BAR - 2)
        bar = max(0, min(_WIDEST_BAR, room - len(fields) - 2))
        line = Table.grid(padding=(0, 1))
        cells: list[Text | ProgressBar] = [Text(head, no_wrap=True, overflow="ellipsis")]
        if bar >= _SHORTEST_BAR:
            cells.append(ProgressBar(total=task.total, completed=task.completed, width=bar))
        if fields:
            cells.append(Text(fields, no_wrap=True, overflow="ellipsis"))
        line.add_row(*cells)
        return line


def human_number(value: float) -> str:
    """Three figures and a unit: 950, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,600 is 1M, not 1000k.
        if abs(value) >= limit * 0.9995:
            return f"{_three_figures(value / limit)}{unit}"
    return f"{value:.0f}"


def _three_figures(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def human_time(seconds: float) -> str:
    """Minutes and seconds, with hours and days where there are some: 0:09, 1:20, 2:03:04, 3d 4:05:06."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours or days else f"{minutes}:{seconds:02}"
    return f"{days}d {clock}" if days else clock
