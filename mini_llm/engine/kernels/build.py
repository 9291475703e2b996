"""Compile a C++ source to a shared library, once per machine, in the user's cache directory.

A damaged library would crash the process that loads it, and one planted by another user would run there. So only the
user may write to the folder, the name of a library holds the hash of its content, and both are checked before loading.
"""

import ctypes
import hashlib
import os
import platform
import signal
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from mini_llm.engine.run.machine import compiler
from mini_llm.engine.run.state import say

# Not -ffast-math: NaN must stay NaN, and a library linked with it changes the rounding mode of the whole process.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
# A source takes 1 to 3 s, ten times as long on a busy machine.
COMPILE_SECONDS = 120
_HASH = 16  # hexadecimal digits in names


@cache
def load_library(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library, compiled first if necessary (1 to 3 s), and ""; or None and the reason, which is printed once."""
    try:
        folder = private_folder()
        return ctypes.CDLL(str(find_library(source, folder) or build_library(source, folder))), ""
    except OSError as error:
        if os.environ.get("RANK", "0") == "0":
            say(f"the compiled CPU kernels are not used, which is slower: {error}")
        return None, str(error)


def library_name(source: Path) -> str:
    """The name up to the hash of the content. It hashes the sources of the folder, the flags and the processor."""
    files = sorted(path for path in source.parent.iterdir() if path.suffix in (".cpp", ".h"))
    what = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    what.update((" ".join(FLAGS) + _processor()).encode())
    return f"{source.stem}-{what.hexdigest()[:_HASH]}"


def private_folder() -> Path:
    """The cache directory, which only this user may read and write. Raises OSError if it belongs to another user."""
    folder = user_cache_path("mini-llm")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if not _is_mine(status):
        raise OSError(f"{folder} belongs to another user, who could put any program there; set XDG_CACHE_HOME")
    if os.name == "posix" and status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def find_library(source: Path, folder: Path) -> Path | None:
    """The compiled library of `source`; a damaged one is removed."""
    for path in sorted(folder.glob(f"{library_name(source)}-*.so")):
        if _is_intact(path):
            return path
        say(f"{path}: damaged, or written by someone else; compiling it again")
        path.unlink()
    return None


def build_library(source: Path, folder: Path) -> Path:
    """Compile `source` into `folder`. Raises OSError with the first line of the compiler's message."""
    program = compiler()
    if program is None:
        raise OSError("no C++ compiler found; install one (apt-get install g++)")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "library.so"
        _compile(program, [program, *FLAGS, "-o", str(made), str(source)])
        content = made.read_bytes()
        made.chmod(0o600)
        path = folder / f"{library_name(source)}-{hashlib.sha256(content).hexdigest()[:_HASH]}.so"
        # Rename the finished file: another process may load the library at this moment.
        os.replace(made, path)
    return path


def _compile(program: str, command: list[str]) -> None:
    """Run the compiler, and end it and its children after COMPILE_SECONDS. Raises OSError."""
    if program in _hung:
        raise OSError(_hung[program])
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=COMPILE_SECONDS)
    except subprocess.TimeoutExpired:
        _hung[program] = f"{program} did not finish in {COMPILE_SECONDS} s and was ended; set CXX to another compiler"
        raise OSError(_hung[program]) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines()
        raise OSError(f"{program} failed: {lines[0] if lines else 'no message'}")


_hung: dict[str, str] = {}


def _is_intact(path: Path) -> bool:
    """Whether a library belongs to this user and its content has the hash in its name."""
    try:
        # A symbolic link would lead out of the folder.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or not _is_mine(status) or status.st_mode & 0o022:
                return False
            content = hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return False
    return path.stem.rpartition("-")[2] == content[:_HASH]


def _is_mine(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _processor() -> str:
    """The processor's features, which -march=native depends on: machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"
