"""The number of threads for a short call that is repeated many times, by the time that calls take."""

from collections.abc import Callable

# Calls of one comparison, and calls between comparisons: as many at first, up to MOST_CALLS while nothing changes.
PROBE, FIRST_CALLS, MOST_CALLS = 16, 16, 1024
# Calls of a comparison that are left out, the slowest ones: on a quiet machine a call is now and then interrupted.
LEFT_OUT = 2
# A smaller gain is noise.
GAIN = 1.1


class TeamSize:
    """Chooses between one thread and `most` threads.

    Threads of a team wait for each other at barriers, and beside other processes they mostly wait for one that does not
    run: on two busy cores, one thread decodes up to 7 times as fast as two. The calls must be alike, and their results
    must not depend on the number of threads.
    """

    def __init__(self, most: int, first: int | None = None) -> None:
        """`first` is the number to begin with, `most` by default."""
        self.most, self.chosen = most, first or most
        self._calls_between = FIRST_CALLS
        # Seconds of the last calls with `chosen` threads, and of those in a comparison with the other number.
        self._usual: list[float] = []
        self._probe: list[float] | None = None
        self._calls = 0

    def run(self, call: Callable[[int], None], clock: Callable[[], float]) -> None:
        """Make one call, `call(threads)`, and measure it."""
        other = 1 if self.chosen == self.most else self.most
        start = clock()
        call(self.chosen if self._probe is None else other)
        seconds = clock() - start
        if self.most == 1:
            return
        if self._probe is None:
            self._usual = [*self._usual, seconds][-2 * PROBE :]
            self._calls += 1
            if self._calls >= self._calls_between:
                self._probe = []
            return
        self._probe.append(seconds)
        usual = sorted(self._usual)[: -2 * LEFT_OUT] or self._usual
        limit = (PROBE - LEFT_OUT) * sum(usual) / len(usual)
        spent = sum(sorted(self._probe)[:-LEFT_OUT])
        # A comparison ends early when the other number can no longer win.
        if len(self._probe) == PROBE or spent > limit:
            better = len(self._probe) == PROBE and GAIN * spent < limit
            self.chosen = other if better else self.chosen
            self._usual = self._probe if better else self._usual
            self._calls_between = FIRST_CALLS if better else min(MOST_CALLS, 2 * self._calls_between)
            self._probe, self._calls = None, 0
