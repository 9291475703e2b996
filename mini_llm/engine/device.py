"""Device and dtype, chosen with torch alone, for training and for generation."""

import os

import torch

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.settings import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in fp32 (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def default_device(device: str = "auto") -> torch.device:
    """The device of this process: the CUDA GPU of its local rank, or the CPU if `device` is "cpu" or without GPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """A key of DTYPES; "auto" is bf16 if the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU.

    Raises ConfigError for fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("runtime.precision=fp16 needs a GPU; on a CPU use bf16 or fp32")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


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
