"""Polite stops: SIGTERM, SIGINT, SIGHUP finish the step, save, and end with 128 + signal; a later one ends at once."""

import os
import signal
import stat
import time
from types import FrameType

from mini_llm.engine.errors import UserError

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One wish to stop may come as several signals: from the terminal and the launcher, or once from each thread of a
# launcher that is killed.
SAME_WISH_SECONDS = 1.0


class Interrupted(UserError):
    """Training stopped on a signal, with its state saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Context: `number` is the signal asked for so far, or 0."""

    def __init__(self) -> None:
        self.number, self._since = 0, 0.0

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._catch) for number in CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: FrameType | None) -> None:
        if self.number and time.monotonic() - self._since > SAME_WISH_SECONDS:
            os._exit(128 + number)
        if not self.number:
            self.number, self._since = number, time.monotonic()
        if number == signal.SIGHUP:
            _leave_terminal()


def _leave_terminal() -> None:
    """Once the terminal is closed, writing to it would fail: what is still said goes nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        # A terminal that has hung up is a character device that answers no more.
        if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
            os.dup2(null, descriptor)
