"""A share of a time budget that a phase of the run may use."""

import math
import time


class Deadline:
    """Ends `seconds` after it is made, or never with None."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, negative after the end."""
        return self._end - time.monotonic()

    @property
    def passed(self) -> bool:
        return self.left <= 0
