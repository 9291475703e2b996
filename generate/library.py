"""step.cpp as a shared library: compiled once for each machine, kept in the user's cache directory."""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from engine.machine import compiler

SOURCE = Path(__file__).with_name("step.cpp")
# Not -ffast-math: NaN must stay NaN, and a library linked with it changes the rounding mode of its whole process.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]


def library_path() -> Path:
    """Where the library of this source, these flags and this processor is kept."""
    what = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode() + _processor().encode())
    return user_cache_path("mini-llm") / f"step-{what.hexdigest()[:16]}.so"


@cache
def load_library() -> tuple[ctypes.CDLL | None, str]:
    """The library, compiled where that was not done yet (about 1 s); without one, the reason why there is none."""
    path = library_path()
    try:
        if not path.is_file():
            _build(path)
        return ctypes.CDLL(str(path)), ""
    except OSError as error:
        return None, str(error)


def _build(path: Path) -> None:
    """Raises OSError with what the compiler said."""
    program = compiler()
    if program is None:
        raise OSError("no C++ compiler found (apt-get install g++)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        result = subprocess.run([program, *FLAGS, "-o", str(made), str(SOURCE)], capture_output=True, text=True)
        if result.returncode:
            raise OSError(f"{program} failed: {(result.stderr.strip().splitlines() or ['no message'])[0]}")
        # Renamed, not written in place: another process may load it at this moment.
        os.replace(made, path)


def _processor() -> str:
    """What -march=native depends on: a home directory may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
