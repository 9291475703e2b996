"""Device and dtype, chosen with torch alone, for training and for generation."""

import os
import time
from functools import cache

import torch

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.settings import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How much faster fp32 products must be to be preferred: bf16 halves the memory of activations and the time to move it.
FASTER = 1.2


def cpu_prefers_bf16() -> bool:
    """Whether training on this CPU should multiply matrices in bf16.

    Measured where the CPU has instructions for it, because these do not make it fast: bf16 products took 0.5 of the
    time of fp32 on an AMD EPYC with AVX512-BF16, and 1.85 times as long on an Intel Xeon with AVX512-BF16 whose AMX was
    hidden from the virtual machine.
    """
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(in_hardware and bf16_time() < FASTER)


@cache
def bf16_time(rounds: int = 9) -> float:
    """Time of a matrix product in bf16 over that in fp32 on this CPU, once per process, in about 20 ms.

    The fastest of some short products on one thread, in turns, so that other work on the machine does not change it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        factors = {dtype: torch.randn(2, 384, 384).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        best = dict.fromkeys(factors, float("inf"))
        for _ in range(rounds):
            for dtype, (a, b) in factors.items():
                start = time.perf_counter()
                torch.mm(a, b)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return best[torch.bfloat16] / best[torch.float32]


def default_device(device: str = "auto") -> torch.device:
    """The device of this process: the CUDA GPU of its local rank, or the CPU if `device` is "cpu" or without GPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """A key of DTYPES; "auto" is bf16 if the hardware multiplies it, on a CPU if that is faster.

    Else "auto" is fp16 on a GPU and fp32 on a CPU. Raises ConfigError for fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("runtime.precision=fp16 needs a GPU; on a CPU use bf16 or fp32")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if device.type == "cpu" and cpu_prefers_bf16() else "fp32"


def choose_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device and dtype for generation.

    Device "auto" is a CUDA GPU, else Apple's GPU, else the CPU; dtype "auto" is bf16 on a GPU that supports it, else
    fp32. Raises ConfigError for an unknown dtype or an unusable device.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: choose auto, {', '.join(DTYPES)}, int8")
    if device == "auto":
        device = "mps" if torch.backends.mps.is_available() else str(default_device())
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ConfigError(f"--device {device}: not usable on this machine ({cause}); try auto or cpu") from None
    if dtype == "auto":
        dtype = "bf16" if place.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return place, DTYPES[dtype]
