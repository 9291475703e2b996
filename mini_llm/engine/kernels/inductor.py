"""The cache of torch.compile, in the user's own folder.

PyTorch's default, /tmp/torchinductor_USER, can be created by another user, and PyTorch loads libraries from there
without a check: one that is cut off, as by a full disk, breaks every later start.
"""

import os
import shutil
import struct
from pathlib import Path

from mini_llm.engine.kernels.build import private_folder
from mini_llm.engine.run.state import say

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def use_private_cache() -> None:
    """Set TORCHINDUCTOR_CACHE_DIR, unless the user has; empty the cache if one of its libraries is damaged."""
    if VARIABLE in os.environ:
        return
    try:
        folder = private_folder() / "inductor"
        folder.mkdir(mode=0o700, exist_ok=True)
        if damaged := next((path for path in sorted(folder.rglob("*.so")) if not is_whole(path)), None):
            say(f"{damaged}: damaged; torch.compile starts with an empty cache")
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
    except OSError as error:
        say(f"torch.compile uses its own cache ({error})")
        return
    os.environ[VARIABLE] = str(folder)


def is_whole(path: Path) -> bool:
    """Whether a shared library is complete: its section headers, which the linker writes last, lie inside the file.

    Only 64-bit ELF libraries (Linux) are checked.
    """
    if os.name != "posix" or os.uname().sysname != "Linux":
        return True
    with open(path, "rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    # Elf64_Ehdr: e_shoff, e_shentsize and e_shnum.
    (sections,) = struct.unpack_from("=Q", header, 0x28)
    size, count = struct.unpack_from("=HH", header, 0x3A)
    return sections > 0 and sections + size * count <= path.stat().st_size
