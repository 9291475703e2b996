"""The library of cpp/: what a training step on a CPU computes faster than torch's operators do."""

import ctypes
from functools import cache
from pathlib import Path

import torch

from mini_llm.engine.kernels.build import load_library

# Channels that a kernel takes are a multiple of it: a vector's.
LANES = 16
SOURCE = Path(__file__).parent / "cpp" / "training.cpp"

pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

FUNCTIONS = {
    "add": [size, pointer, pointer, size],
    "attention": [pointer] * 3,
    "attention_gradients": [pointer] * 8,
    "cross_entropy": [size, size, *[pointer] * 5, number, size, size],
    "gate": [size, *[pointer] * 3, size, size],
    "gate_gradients": [size, *[pointer] * 5, size, size],
    "norm": [size, size, pointer, pointer, number, pointer, pointer, size, size],
    "norm_gradients": [size, size, size, *[pointer] * 6, size, size],
}


# What kernels read and write; another type would be read as one of them.
NUMBERS = (torch.float32, torch.bfloat16)


def has_kernels(device: torch.device) -> bool:
    """Whether training on this device takes them."""
    return device.type == "cpu" and load_kernels() is not None


@cache
def load_kernels() -> ctypes.CDLL | None:
    """The compiled source; None on processors without AVX2, where it gains little, and without a compiler."""
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512")):
        return None
    library, _ = load_library(SOURCE)
    if library is not None:
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
    return library
