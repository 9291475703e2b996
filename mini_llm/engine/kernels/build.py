"""C++ sources as shared libraries: compiled once for each machine, kept in the user's cache directory."""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from mini_llm.engine.run.machine import compiler

# Not -ffast-math: NaN must stay NaN, and a library linked with it changes the rounding mode of its whole process.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]


def library_path(source: Path) -> Path:
    """Where the library of this source (and what lies beside it), these flags and this processor is kept."""
    files = sorted(path for path in source.parent.iterdir() if path.suffix in (".cpp", ".h"))
    what = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    what.update((" ".join(FLAGS) + _processor()).encode())
    return user_cache_path("mini-llm") / f"{source.stem}-{what.hexdigest()[:16]}.so"


@cache
def load_library(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library, compiled where that was not done yet (1 to 3 s); without one, the reason why there is none."""
    path = library_path(source)
    try:
        if not path.is_file():
            _build(source, path)
        return ctypes.CDLL(str(path)), ""
    except OSError as error:
        return None, str(error)


def _build(source: Path, path: Path) -> None:
    """Raises OSError with what the compiler said."""
    program = compiler()
    if program is None:
        raise OSError("no C++ compiler found (apt-get install g++)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        result = subprocess.run([program, *FLAGS, "-o", str(made), str(source)], capture_output=True, text=True)
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
