"""Named points at which this process can be made to fail: how recovery is tried, on the code that users run.

    LLM_FAULT=NAME[:RANK[:NTH]]=kill|raise|enospc|sleep     at the NTH time (1) that RANK (any) comes to NAME

Nothing happens where the variable is not set. `python -m chaos` sets it.
"""

import errno
import os
import signal
import time
from collections.abc import Callable

VARIABLE = "LLM_FAULT"
SLEEP_SECONDS = 3.0

# Called with the name of every point that is passed.
listeners: list[Callable[[str], None]] = []
_passed: dict[str, int] = {}


class InjectedError(RuntimeError):
    """What a fault of kind "raise" raises."""


def fault_point(name: str) -> None:
    """Fail here when LLM_FAULT says so. Raises ValueError for a setting that cannot be read."""
    for listen in listeners:
        listen(name)
    setting = os.environ.get(VARIABLE)
    if setting:
        where, _, kind = setting.partition("=")
        wanted, rank, nth = (*where.split(":"), "", "")[:3]
        if wanted == name and rank in ("", os.environ.get("RANK", "0")):
            _passed[name] = _passed.get(name, 0) + 1
            if _passed[name] == int(nth or 1):
                _fail(name, kind)


def _fail(name: str, kind: str) -> None:
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise InjectedError(f"fault at {name}")
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        case "sleep":
            time.sleep(SLEEP_SECONDS)
        case _:
            raise ValueError(f"{VARIABLE}: '{kind}' is none of kill, raise, enospc, sleep")
