"""The heap of glibc."""

import platform
import subprocess
import sys

import pytest

FRAGMENTED = """
import numpy as np
from pathlib import Path
from mini_llm.engine.run.heap import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

before = resident()
blocks = [np.ones(100 * 1024, np.uint8) for _ in range(2000)]
last = blocks.pop()  # stands at the end of the heap, which therefore cannot shrink
del blocks
kept = resident() - before
return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_goes_back_to_the_system():
    found = subprocess.run([sys.executable, "-c", FRAGMENTED], check=True, capture_output=True, text=True)
    kept, left = map(int, found.stdout.split())
    assert kept > 150 and left < 20
