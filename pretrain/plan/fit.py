"""Whether a run fits into memory; when it does not, the error names the smallest change that would help."""

import os
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from mini_llm.engine.errors import ConfigError
from mini_llm.model import ModelConfig

from .memory import Memory, predict_memory
from .parameters import count_parameters
from .setup import MemorySetup

# What the first step loads (about 25 MB) and what the heap keeps; the context of a GPU.
FIRST_STEP_BYTES, CONTEXT_BYTES = 95e6, 600e6
# Added by DeepSpeed, by ZeRO stage (benchmarks/memory.py).
DEEPSPEED_BYTES = {0: 0.0, 1: 150e6, 2: 150e6, 3: 300e6}


def check_memory(config: ModelConfig, setup: MemorySetup, per_rank: float | None = None) -> Memory:
    """The memory of one rank on this machine, or on one with `per_rank` bytes for each rank.

    Raises ConfigError when the run does not fit.
    """
    process = process_bytes(setup)
    if per_rank is not None:
        return fit(config, setup, per_rank, process, 1, "a rank")
    limit, name = machine_memory(setup.device)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", setup.ranks)) if setup.device == "cpu" else 1
    return fit(config, setup, limit, process, ranks_here, name)


def machine_memory(device: str) -> tuple[float, str]:
    """Bytes of one GPU, or of the CPU memory that all processes here share; and its name for messages."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory), "the GPU"
    total = float(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, float(text))
    return total, "this machine"


def process_bytes(setup: MemorySetup) -> float:
    """Memory of a process before it has a model."""
    if setup.device == "cuda":
        return CONTEXT_BYTES
    return psutil.Process().memory_info().rss + FIRST_STEP_BYTES + DEEPSPEED_BYTES[setup.stage]


def fit(config: ModelConfig, setup: MemorySetup, limit: float, process: float, ranks_here: int, name: str) -> Memory:
    """The memory of one rank; raises ConfigError when `ranks_here` of them exceed `limit`, the memory of `name`."""
    parameters = count_parameters(config)

    def needed(**changes: int | bool) -> float:
        return predict_memory(config, replace(setup, **changes), process, parameters).peak * ranks_here

    found = predict_memory(config, setup, process, parameters)
    if needed() <= limit:
        return found
    largest = max(found.parts, key=found.parts.__getitem__)
    times = f" in each of {ranks_here} processes" if ranks_here > 1 else ""
    most = max(0.0, limit - process) / 16
    remedy = next(
        (
            f"{words} would fit: {size(needed(**changes))}"
            for words, changes in _remedies(setup)
            if needed(**changes) <= limit
        ),
        f"No setting fits: a model of at most about {most:,.0f} parameters would (fewer layers or a smaller width)",
    )
    raise ConfigError(
        f"this run does not fit: it needs about {size(found.peak)}{times} (peak in: {found.peak_moment}), "
        f"{name} has {size(limit)}. The largest part: {largest}, {size(found.parts[largest])}, of a model with "
        f"{parameters.total:,} parameters. {remedy}"
    )


def _remedies(setup: MemorySetup) -> list[tuple[str, dict[str, int | bool]]]:
    """(settings in words, changes of `setup`), the least costly first."""
    checkpointing = "runtime.gradient_checkpointing=1"
    found: list[tuple[str, dict[str, int | bool]]] = []
    if not setup.checkpoint_every:
        found.append((checkpointing, {"checkpoint_every": 1}))
    mine = setup.rows * setup.accumulation
    fewer = [rows for rows in range(setup.rows - 1, 0, -1) if mine % rows == 0]
    smaller = [(f"micro_batch_size={rows}", {"rows": rows, "accumulation": mine // rows}) for rows in fewer]
    found += smaller
    found += [(f"{words} {checkpointing}", {**changes, "checkpoint_every": 1}) for words, changes in smaller]
    least = {"rows": 1, "checkpoint_every": 1, "muon": False}
    found.append((f"micro_batch_size=1 {checkpointing} optim.name=adamw", least))
    if setup.device == "cuda":
        for ranks in (max(2**i, setup.ranks) for i in range(1, 11)):
            words = f"runtime.zero_stage=3 on {ranks} ranks with micro_batch_size=1 {checkpointing} optim.name=adamw"
            found.append((words, {**least, "ranks": ranks, "stage": 3}))
    return found


def size(number: float) -> str:
    """Bytes as text."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"
