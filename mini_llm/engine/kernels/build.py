"""Compile a C++ source to a shared library, once per machine, in the user's cache directory."""

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

# Not -ffast-math: NaN must stay NaN, and a library linked with it changes the rounding mode of the whole process.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]


def library_path(source: Path) -> Path:
    """The path of the compiled library. Its name hashes the sources of the folder, the flags and the processor."""
    files = sorted(path for path in source.parent.iterdir() if path.suffix in (".cpp", ".h"))
    what = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    what.update((" ".join(FLAGS) + _processor()).encode())
    return user_cache_path("mini-llm") / f"{source.stem}-{what.hexdigest()[:16]}.so"


@cache
def load_library(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library, compiled first if necessary (1 to 3 s), and ""; or None and the reason."""
    path = library_path(source)
    try:
        if not path.is_file():
            _build(source, path)
        return ctypes.CDLL(str(path)), ""
    except OSError as error:
        return None, str(error)


def _build(source: Path, path: Path) -> None:
    """Compile `source` to `path`. Raises OSError with the first line of the compiler's message."""
    program = compiler()
    if program is None:
        raise OSError("no C++ compiler found; install one (apt-get install g++)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        result = subprocess.run([program, *FLAGS, "-o", str(made), str(source)], capture_output=True, text=True)
        if result.returncode:
            raise OSError(f"{program} failed: {(result.stderr.strip().splitlines() or ['no message'])[0]}")
        # Rename the finished file: another process may load the library at this moment.
        os.replace(made, path)


def _processor() -> str:
    """The processor's features, which -march=native depends on: machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
