"""Freed memory: training makes glibc keep it, for speed; commands that read files of any size return it."""

import ctypes
from functools import cache
from typing import Any


@cache
def _glibc() -> Any:
    """The C library, or None if it is not glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt, library.malloc_trim  # noqa: B018  looks the functions up
        return library
    except (OSError, AttributeError):
        return None


def keep_freed_memory() -> None:
    """Make glibc reuse large freed blocks. By default it maps, zeroes and unmaps memory for each tensor above 32 MB.

    Measured on two cores with 16 x 256 tokens and a vocabulary of 8,192: a training step takes 0.6 of the time.
    """
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    if (library := _glibc()) is not None:
        library.mallopt(m_mmap_max, 0)
        library.mallopt(m_trim_threshold, 2**31 - 1)
        library.mallopt(m_top_pad, 64 * 2**20)


def return_freed_memory() -> None:
    """Return freed memory to the system. Call it between batches of different lengths.

    Their tensors leave gaps in the heap, and longer tensors do not fit into these gaps. Measured with texts of up to
    704 tokens and a model of 5 MB: the process grows from 0.3 to 1.1 GB, and to 0.5 GB with a call every 512 texts.
    """
    if (library := _glibc()) is not None:
        library.malloc_trim(0)
