"""The C++ compiler of this machine, which torch.compile and the CPU kernels need, and its cores."""

import os
import shutil


def compiler() -> str | None:
    """$CXX, or the first of c++, g++ and clang++ that is installed, or None."""
    return next(filter(None, map(shutil.which, filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]))), None)


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
