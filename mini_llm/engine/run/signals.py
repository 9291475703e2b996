"""Stop on SIGTERM, SIGINT or SIGHUP: finish the step, save, exit with 128 + signal. A second signal exits at once."""

import os
import signal
import stat
import time
from types import FrameType

from mini_llm.engine.errors import UserError

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One request to stop may arrive as several signals: from the terminal and the launcher, or from each thread of a killed
# launcher.
SAME_REQUEST_SECONDS = 1.0


class Interrupted(UserError):
    """A signal stopped training after its state was saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Context manager that catches the signals; `number` is the first one received, or 0."""

    def __init__(self) -> None:
        self.number, self._since = 0, 0.0

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._catch) for number in CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: FrameType | None) -> None:
        if self.number and time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        if not self.number:
            self.number, self._since = number, time.monotonic()
        if number == signal.SIGHUP:
            _leave_terminal()


def _leave_terminal() -> None:
    """Redirect output to /dev/null once the terminal is closed, because writing to it would fail."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        # A terminal that has hung up is still a character device but no longer a tty.
        if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
            os.dup2(null, descriptor)
