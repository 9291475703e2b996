"""Peak memory of a process that a test starts."""

import re
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Largest resident size of this process so far.

    On Linux, ru_maxrss is at least the memory of the process that started this one, so /proc is read there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
