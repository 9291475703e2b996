"""How the threads of PyTorch and of our kernels wait for each other, set before torch is imported.

A parallel region ends at a barrier. libgomp, the OpenMP library inside torch, spins there for 300,000 rounds, about
15 ms. When another process has taken the core that a late thread needs, the spinning keeps it away for longer. Here
threads spin for about a millisecond, then sleep, and ask the scheduler for short turns, so that a thread that wakes up
runs at once. Measured on two cores with `python -m benchmarks.busy`, training a GPT of 4 x 128, in shares of the fair
share beside one and four busy processes: libgomp's default 0.5 and 0.4, 16,000 rounds 0.7 and 0.8, 1,000 rounds 0.8 and
1.0. With nothing beside it the default is at most 3 % faster than 16,000 rounds and 8 % faster than 1,000.
"""

import ctypes
import os
import sys

SPIN_ROUNDS = 16_000
# Linux 6.12 or newer; older kernels accept and ignore it. The default is 3 ms.
TURN_NANOSECONDS = 100_000
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
# What a user may have set instead.
OWN_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


class _SchedulerAttributes(ctypes.Structure):
    """struct sched_attr of sched_setattr(2), in its first version."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("size", "policy")),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("runtime", "deadline", "period")),
    )


def wait_briefly() -> None:
    """Set up this thread, the threads that it starts and the processes that it starts, unless the user has."""
    if any(name in os.environ for name in OWN_SETTINGS):
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_ROUNDS)
    _take_short_turns()


def _take_short_turns() -> None:
    if sys.platform != "linux" or os.uname().machine not in SCHED_SETATTR or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    attributes = _SchedulerAttributes(nice=os.getpriority(os.PRIO_PROCESS, 0), runtime=TURN_NANOSECONDS)
    attributes.size = ctypes.sizeof(attributes)
    # Where it fails, as in some containers, turns stay long.
    ctypes.CDLL(None).syscall(SCHED_SETATTR[os.uname().machine], 0, ctypes.byref(attributes), 0)
