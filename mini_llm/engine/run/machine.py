"""What this machine has: its C++ compiler, which torch.compile and the decoding step need, and its cores."""

import os
import shutil


def compiler() -> str | None:
    """$CXX, else the first of c++, g++, clang++ that is installed; None without one."""
    return next(filter(None, map(shutil.which, filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]))), None)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
