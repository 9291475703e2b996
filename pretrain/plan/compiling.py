"""Whether a run compiles its layers: what prevents it, what it costs, and what it has gained here before."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import BaseModel, NonNegativeFloat, PositiveFloat

from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.kernels.build import private_folder
from mini_llm.engine.kernels.inductor import VARIABLE
from mini_llm.engine.kernels.load import has_kernels
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.machine import compiler, usable_cores
from mini_llm.engine.run.state import read_state, say
from mini_llm.model import ModelConfig

from ..config import PretrainConfig
from .setup import MemorySetup

# From these durations on a run that measures nothing compiles. Without our kernels compiled layers are 8 to 9 % faster
# on two cores, after 11 to 24 s of compiling.
SECONDS_TO_COMPILE = {"cpu": 600.0, "cuda": 180.0}
# What compiling takes with an empty cache, where nothing is known about this machine.
COLD_SECONDS = {"cpu": 25.0, "cuda": 60.0}
# Compiling is tried for the first time where the expected saving is this many times its cost.
MARGIN = 2.0
# Compiled layers halve the time outside of matrix products at best; half of that gain is expected.
HALVED, EXPECTED = 0.5, 0.5
FILE = "compiled.json"


class Compiled(BaseModel):
    """What compiling a model takes on a quiet machine, and by which factor its steps became faster."""

    seconds: NonNegativeFloat
    gain: PositiveFloat


def obstacle(config: PretrainConfig, device: torch.device) -> str | None:
    """Why the layers of a run cannot be compiled, or None."""
    if zero_stage(config.runtime) is not None:
        return "DeepSpeed's hooks prevent it"
    if config.pairs is not None:
        return "pairs vary in length"
    if device.type == "cpu" and compiler() is None:
        return "no C++ compiler found"
    return None


def compiles_unmeasured(config: PretrainConfig, seconds: float, device: torch.device) -> tuple[bool, str]:
    """Whether a run of this duration compiles its layers if nothing is measured, and the reason."""
    if config.runtime.compile != "auto":
        return config.runtime.compile, "given"
    if why := obstacle(config, device):
        return False, why
    if has_kernels(device):
        return False, "not measured; our kernels need no compiling"
    shortest = SECONDS_TO_COMPILE[device.type]
    return seconds >= shortest, f"pays off from {shortest / 60:.0f} minutes on, by experience"


def expected_gain(mfu: float) -> float:
    """The factor by which compiling may be expected to speed up steps of this MFU: products keep their speed."""
    best = 1 / (mfu + HALVED * (1 - mfu)) if mfu < 1 else 1.0
    return 1 + EXPECTED * (best - 1)


def compile_key(model: ModelConfig, setup: MemorySetup, threads: int) -> str:
    """A hash of what the compiled code depends on."""
    what = {
        "model": asdict(model),
        "rows": [setup.rows, setup.length, setup.target_length],
        "precision": setup.precision,
        "kernels": setup.kernels,
        "threads": threads,
        "torch": torch.__version__,
        "processor": torch.cuda.get_device_name() if setup.device == "cuda" else torch.cpu.get_capabilities(),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_compiled() -> dict[str, Compiled]:
    """What is known about earlier compilations on this machine, by compile_key."""
    path = _path()
    return (read_state(path, dict[str, Compiled], aside=True) if path else None) or {}


def write_compiled(key: str, found: Compiled) -> None:
    """Add to what is known, if the cache can be written."""
    path = _path()
    if path is None:
        return
    known = {**read_compiled(), key: found}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, {name: entry.model_dump() for name, entry in known.items()})
    except OSError as error:
        say(f"{path}: not written ({error.strerror or error}); the next run measures compilation anew")


def cost_in_seconds(known: dict[str, Compiled], key: str, device: torch.device) -> float:
    """What compiling is expected to take now: as long as the last time, or as another model took here."""
    quiet = max((entry.seconds for entry in known.values()), default=COLD_SECONDS[device.type])
    return crowding() * (known[key].seconds if key in known else quiet)


def crowding() -> float:
    """By how much the processes that wait for a core slow down a single one."""
    return max(1.0, os.getloadavg()[0] / usable_cores()) if hasattr(os, "getloadavg") else 1.0


def _path() -> Path | None:
    """The record lies beside the compiled code, so that both are emptied together."""
    try:
        folder = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else private_folder() / "inductor"
        return folder / FILE
    except OSError:
        return None
