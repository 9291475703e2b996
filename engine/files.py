"""Writing a file so that a reader sees the old one or the whole new one, and values as strict JSON."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def _sync_directory(path: Path) -> None:
    # The new name is safe on disk only once the directory is: POSIX systems alone can open one.
    if os.name != "posix":
        return
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
    except (OSError, ValueError):
        return None


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
