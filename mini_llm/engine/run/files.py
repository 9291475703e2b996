"""Writing a file or directory so that a reader sees the old one or the whole new one, and values as strict JSON."""

import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mini_llm.engine.run.fault_points import fault_point

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) so that `path` is the old file or the whole new one, after a kill or power cut too.

    Raises OSError; a failed write leaves no temporary file and the old content in place.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A path to write a file at, which becomes `path` at the end of the block; see write_atomic."""
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
    """A directory to fill, which becomes `target` at the end of the block, in place of one that is there.

    All of it is on disk before it gets its name. Raises OSError; a failure leaves the old one and nothing else.
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
    """Remove a directory, which loses its name first: there is never half of it under that name."""
    aside = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what writers killed on their way left in `directory`; put a directory back that was being replaced."""
    for path in directory.glob(".*tmp-*"):
        aside = re.fullmatch(r"\.tmp-(.+)-[0-9a-f]{8}-old", path.name)
        if aside and not path.with_name(aside[1]).exists():
            os.rename(path, path.with_name(aside[1]))
        elif re.fullmatch(r"\.tmp-.+-[0-9a-f]{8}(-old)?", path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(r"\..+\.tmp-\d+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories: in one step where the system can (Linux, renameat2), else in two renames."""
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
    # The new name is safe on disk only once the directory is: POSIX systems alone can open one.
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
    """The tree in a JSON file, or None when the file is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def content_hash(rows: Iterable[Any]) -> str:
    """sha256 of rows of plain values, which differs when one of them or their order does."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """A value as strict JSON can hold it: scalars of NumPy and torch become numbers, NaN and infinities become null.

    Null, not the text "NaN": a column of numbers then stays one for every reader (pandas gives NaN back).
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
    """Hexadecimal digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
