"""The number of threads of a repeated call follows the time that calls take."""

import pytest

from mini_llm.engine.kernels.team_size import MOST_CALLS, PROBE, TeamSize


class Machine:
    """Calls with `threads` threads take `seconds[threads]`."""

    def __init__(self, one: float, two: float) -> None:
        self.now, self.seconds, self.calls = 0.0, {1: one, 2: two}, []

    def call(self, threads: int) -> None:
        self.calls.append(threads)
        # Every 16th call is interrupted.
        self.now += self.seconds[threads] + (4.0 if len(self.calls) % 16 == 0 else 0.0)

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(("one", "two", "best"), [(1.0, 0.6, 2), (1.0, 7.0, 1), (1.0, 0.95, 2)])
def test_the_faster_number_is_found_and_little_is_lost_on_comparing(one, two, best):
    machine, team = Machine(one, two), TeamSize(2)
    for _ in range(8192):
        team.run(machine.call, machine.clock)
    assert team.chosen == best
    assert machine.now < 1.05 * 8192 * (machine.seconds[best] + 4 / 16)


def test_it_follows_a_machine_that_becomes_busy_and_quiet_again():
    machine, team = Machine(1.0, 0.6), TeamSize(2)
    for seconds, best in ((0.6, 2), (7.0, 1), (0.6, 2)):
        machine.seconds[2] = seconds
        for _ in range(2 * MOST_CALLS + PROBE):
            team.run(machine.call, machine.clock)
        assert team.chosen == best


def test_one_thread_is_never_compared():
    machine, team = Machine(1.0, 0.1), TeamSize(1)
    for _ in range(100):
        team.run(machine.call, machine.clock)
    assert set(machine.calls) == {1}
