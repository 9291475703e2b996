"""Join the launched processes and build the Accelerator: one process, DDP or DeepSpeed ZeRO."""

import json
import os
import random

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin

from mini_llm.engine.device import default_device, resolve_precision
from mini_llm.engine.distributed.deepspeed_config import deepspeed_config, deepspeed_file, file_stage
from mini_llm.engine.distributed.watchdog import PATIENCE, die_with_launcher
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.heap import keep_freed_memory
from mini_llm.engine.settings import RuntimeConfig


def zero_stage(config: RuntimeConfig) -> int | None:
    """The DeepSpeed ZeRO stage of this run, or None without DeepSpeed. Stage 0 means plain DDP.

    Raises ConfigError if the settings, the DeepSpeed file and the launcher disagree.
    """
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    path = deepspeed_file(config.deepspeed)
    given = {"runtime.zero_stage": config.zero_stage, str(path): file_stage(path)}
    if launched:
        # A launcher with a DeepSpeed file does not pass a stage.
        default = None if path else 2
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", default)
        given["the launcher's configuration"] = None if stage is None else int(stage)
    stages = {source: stage for source, stage in given.items() if stage is not None}
    if len(set(stages.values())) > 1:
        both = ", ".join(f"{source} says {stage}" for source, stage in stages.items())
        raise ConfigError(f"conflicting ZeRO stages: {both}; set only one of them")
    stage = next(iter(stages.values()), 2 if path else None)
    if path and not stage:
        raise ConfigError(
            f"runtime.deepspeed={path}, but runtime.zero_stage=0 runs without DeepSpeed; remove one of them"
        )
    return stage or None


def resolved_runtime(config: RuntimeConfig, compiled: bool) -> RuntimeConfig:
    """`config` with the precision, compilation and ZeRO stage that this launch uses."""
    precision = resolve_precision(config.precision, default_device(config.device))
    return config.model_copy(update={"precision": precision, "compile": compiled, "zero_stage": zero_stage(config)})


def start_processes(config: RuntimeConfig) -> PartialState:
    """Join the processes that the launcher started, or run as one process without a launcher.

    Call it before any other work. Raises ConfigError.
    """
    die_with_launcher()
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = default_device(config.device)
    stage = zero_stage(config)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    os.environ["ACCELERATE_USE_DEEPSPEED"] = str(stage is not None).lower()
    if stage is not None:
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(stage)
        # DeepSpeed needs a process group even for one process.
        for key, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1")):
            os.environ.setdefault(key, str(value))
        os.environ.setdefault("MASTER_PORT", str(random.SystemRandom().randint(20_000, 60_000)))
    distributed = world_size > 1 or stage is not None
    # Without an explicit backend Accelerate treats a CPU-only DeepSpeed run as a single process, and with cpu=True it
    # silently omits DeepSpeed.
    backend = {"backend": "nccl" if device.type == "cuda" else "gloo"} if distributed else {}
    timeout = {"timeout": PATIENCE} if distributed else {}
    if stage is not None and device.type == "cpu":
        skip_shared_memory_build()
    processes = PartialState(cpu=device.type == "cpu" and stage is None, **backend, **timeout)
    if processes.num_processes != world_size:
        raise ConfigError(
            f"the launcher started {world_size} processes, but Accelerate sees {processes.num_processes}; "
            "use `accelerate launch` or `torchrun`"
        )
    return processes


def skip_shared_memory_build() -> None:
    """Stop DeepSpeed from compiling a CPU collective at its first start that only its inference engine uses.

    The build needs a C++ compiler and half a minute, or many minutes on a busy machine.
    """
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def make_accelerator(
    config: RuntimeConfig, accumulation: int, micro_batch_size: int, max_grad_norm: float
) -> Accelerator:
    """The Accelerator of this run: one process, DDP or DeepSpeed ZeRO, on CPU or GPU. Call start_processes first."""
    device = default_device(config.device)
    precision = resolve_precision(config.precision, device)
    stage = zero_stage(config)
    plugin = None
    mixed = "no" if precision == "fp32" else precision
    if stage is not None:
        # Accelerate refuses a configuration next to the list of keys that the launcher took from its own file.
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
        path = deepspeed_file(config.deepspeed)
        ranks = PartialState().num_processes
        settings = deepspeed_config(
            stage, precision, accumulation, micro_batch_size, max_grad_norm, ranks=ranks, path=path
        )
        if PartialState().is_main_process:
            print(f"DeepSpeed configuration{f', {path} under ours' if path else ''}: {json.dumps(settings)}")
        # Otherwise Accelerate would also enable DeepSpeed's own bf16.
        mixed = "no" if "torch_autocast" in settings else mixed
        plugin = DeepSpeedPlugin(
            hf_ds_config=settings,
            zero3_init_flag=False,
        )
    return Accelerator(
        cpu=device.type == "cpu" and stage is None,
        mixed_precision=mixed,
        gradient_accumulation_steps=accumulation,
        deepspeed_plugin=plugin,
        step_scheduler_with_optimizer=False,
    )
