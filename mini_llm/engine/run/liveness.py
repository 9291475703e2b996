"""Whether a run is being trained now. A killed run leaves its lock.json, so that the file alone does not tell."""

import socket
from datetime import datetime
from pathlib import Path

from mini_llm.engine.run.files import read_json

SLACK = 2.0  # seconds between the start of a process and the time in its lock.json, rounded to a second


def is_live(run: Path) -> bool:
    """Return whether the process in the lock.json of a run is alive. One on another host counts as alive."""
    owner = read_json(run / "lock.json")
    if not isinstance(owner, dict):
        return False
    if owner.get("host") != socket.gethostname():
        return True
    import psutil

    try:
        started = psutil.Process(int(owner["pid"])).create_time()
        # A process that began after the run has the number of one that is gone.
        return started <= datetime.fromisoformat(owner["since"]).timestamp() + SLACK
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False
    except psutil.Error:
        return True
