"""Disk space, checked before training, and out-of-memory errors, turned into advice."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mini_llm.engine.distributed.zero import optimizer_numbers, unwrap
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.step import TrainContext

# Bytes for the tokenizer, manifests, metrics and file-system blocks.
SMALL_FILES = 4 << 20


def checkpoint_bytes(context: TrainContext) -> tuple[int, int]:
    """(bytes of a checkpoint, bytes of the model alone): fp32 weights, plus the optimizer state in a checkpoint."""
    model = 4 * sum(getattr(p, "ds_numel", p.numel()) for p in unwrap(context.model).parameters()) + SMALL_FILES
    return model + 4 * optimizer_numbers(context.optimizer), model


def check_space(root: Path, context: TrainContext, keep_last: int) -> str | None:
    """A warning when the disk of `root` cannot hold everything the run keeps, else None.

    Raises ConfigError when not even one checkpoint fits.
    """
    checkpoint, model = checkpoint_bytes(context)
    free = shutil.disk_usage(root).free
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    # A checkpoint is complete before the one it replaces is removed.
    wanted = (keep_last + 1) * checkpoint + 3 * model
    figures = (
        f"a checkpoint takes about {_size(checkpoint)}, the model {_size(model)}; with keep_last={keep_last} the run "
        f"needs {_size(wanted)}, and {_size(free)} are free"
    )
    if free < checkpoint + model:
        raise ConfigError(f"{root}: not enough disk space: {figures}. Free some space or run from another disk")
    return f"{root}: {figures}; saves will fail" if free + held < wanted else None


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Context manager: turn a failed allocation into a ConfigError that says how to use less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU, torch raises a plain RuntimeError.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"out of memory ({_first_line(error)}). Lower micro_batch_size (the global batch stays the same, in more "
            "micro-batches), or set runtime.gradient_checkpointing=1. Checkpoints are intact: run the same command "
            "again to resume"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
