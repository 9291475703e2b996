"""The C++ compiler of this machine: torch.compile and the decoding step need one."""

import os
import shutil


def compiler() -> str | None:
    """$CXX, else the first of c++, g++, clang++ that is installed; None without one."""
    return next(filter(None, map(shutil.which, filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]))), None)
