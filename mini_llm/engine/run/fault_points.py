"""Named points at which a process fails on request, to test recovery on the code that users run.

    LLM_FAULT=NAME[:RANK[:NTH]]=kill|raise|enospc|sleep     the NTH time (1) that RANK (any) reaches NAME

Without the variable nothing happens. `python -m chaos` sets it.
"""

import errno
import os
import signal
import time
from collections.abc import Callable

VARIABLE = "LLM_FAULT"
SLEEP_SECONDS = 3.0

# Called with the name of every point reached.
listeners: list[Callable[[str], None]] = []
_passed: dict[str, int] = {}


class InjectedError(RuntimeError):
    """Raised by a fault of kind "raise"."""


def fault_point(name: str) -> None:
    """Fail here if LLM_FAULT says so. Raises ValueError for an unknown kind of fault."""
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
            raise ValueError(f"{VARIABLE}: unknown fault '{kind}': use kill, raise, enospc or sleep")
