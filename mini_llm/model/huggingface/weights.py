"""Read and write safetensors files."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file: equal tensors and metadata give equal bytes.

    Its mode is the one that the umask gives new files. Raises OSError, SafetensorError.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(dict(tensors), str(path), metadata=None if metadata is None else dict(metadata))
    os.chmod(path, mode)  # the library lets only the owner read its files
    if metadata is not None and len(metadata) > 1:
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in the header of a file: the library writes the entries in an order that differs each time."""
    with open(path, "rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file. Raises OSError, also for a FIFO, device or directory, and SafetensorError."""
    check_regular(path)
    return load_file(str(path))


def check_regular(path: Path) -> None:
    """Raise OSError if `path` exists but is not a regular file: reading a FIFO or a device may never end."""
    if path.exists() and not path.is_file():
        raise OSError(0, "not a regular file", str(path))
