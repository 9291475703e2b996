"""Atomic writes of files and directories, strict JSON, and hashes."""

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mini_llm.engine.run.fault_points import fault_point

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8). A kill or power cut leaves either the old file or the whole new one.

    Halves of surrogate pairs become "?". Raises OSError; a failed write keeps the old content and leaves no temporary
    file.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8", "replace") if isinstance(data, str) else data)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path to write to; the file there becomes `path` at the end of the block. See write_atomic."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory to fill, which replaces `target` at the end of the block.

    All files are on disk before the rename. Raises OSError; a failure keeps the old directory and leaves nothing else.
    """
    temporary = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        fault_point("directory-made")
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        fault_point("directory-synced")
        if target.exists():
            _exchange(temporary, target)
            fault_point("directory-exchanged")
        else:
            os.rename(temporary, target)
        _sync_directory(target.parent)
        fault_point("directory-published")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Rename a directory, then remove it, so that a kill never leaves half of it under its name."""
    aside = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed writers left in `directory` and its folders, except W&B's own, and restore a directory whose
    replacement was interrupted."""
    for folder, below, _ in os.walk(directory):
        _remove_leftovers_in(Path(folder))
        below[:] = [name for name in below if name != "wandb" and not name.startswith(".")]


def _remove_leftovers_in(directory: Path) -> None:
    for path in directory.glob(".*tmp-*"):
        aside = re.fullmatch(r"\.tmp-(.+)-[0-9a-f]{8}-old", path.name)
        if aside and not path.with_name(aside[1]).exists():
            os.rename(path, path.with_name(aside[1]))
        elif re.fullmatch(r"\.tmp-.+-[0-9a-f]{8}(-old)?", path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(r"\..+\.tmp-\d+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories: atomically on Linux (renameat2), elsewhere with three renames."""
    library = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(one), os.fsencode(other))
    if hasattr(library, "renameat2") and not library.renameat2(
        _AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE
    ):
        return
    aside = one.with_name(one.name + "-old")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def _sync_directory(path: Path) -> None:
    # A rename is on disk only once its parent directory is synced. Only POSIX systems can open a directory.
    if os.name == "posix":
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path | str, tree: Any) -> None:
    """Write a tree of values as indented JSON, atomically. Raises OSError."""
    write_atomic(path, json.dumps(plain(tree), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file of any type, or None if the file is missing or damaged; see state.py for our own."""
    try:
        with open_regular(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file to read bytes. Raises OSError, also for a FIFO, device or directory: it may block or never end."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def content_hash(rows: Iterable[Any]) -> str:
    """sha256 over rows of plain values, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Convert a value to strict JSON types: NumPy and torch scalars to numbers, NaN and infinities to None.

    None rather than the text "NaN" keeps a column numeric for every reader; pandas turns it back into NaN.
    """
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    return str(value)


def sha256(path: Path | str) -> str:
    """Hexadecimal sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
