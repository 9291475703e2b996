"""The shared library with the training kernels of cpp/, which replace PyTorch operators on a CPU."""

import ctypes
from functools import cache
from pathlib import Path

import torch

from mini_llm.engine.kernels.build import load_library

# The kernels need a multiple of this many channels: the fp32 numbers of the widest vector.
LANES = 16
SOURCE = Path(__file__).parent / "cpp" / "training.cpp"

pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

FUNCTIONS = {
    "attention": [pointer] * 3,
    "attention_gradients": [pointer] * 8,
    "cross_entropy": [size, size, *[pointer] * 5, size, size],
    "gate": [size, *[pointer] * 3, size, size],
    "gate_gradients": [size, *[pointer] * 5, size, size],
    "norm": [size, size, pointer, pointer, number, pointer, pointer, size, size],
    "norm_gradients": [size, size, size, *[pointer] * 6, size, size],
}

# Types that the kernels read and write. They would misread another one.
NUMBERS = (torch.float32, torch.bfloat16)


def has_kernels(device: torch.device) -> bool:
    """Whether training on this device can use the kernels."""
    return device.type == "cpu" and load_kernels() is not None


def kernels() -> ctypes.CDLL:
    """The compiled library. Raises RuntimeError where has_kernels is false."""
    library = load_kernels()
    if library is None:
        raise RuntimeError("the CPU kernels are not available here: they need a C++ compiler and AVX2")
    return library


@cache
def load_kernels() -> ctypes.CDLL | None:
    """The compiled library; None without a compiler, and on processors without AVX2, where it gains little."""
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512")):
        return None
    library, _ = load_library(SOURCE)
    if library is not None:
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
    return library
