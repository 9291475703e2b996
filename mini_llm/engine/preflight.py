"""What a machine can run out of: room on the disk, found before any training, and memory, said with what would help."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mini_llm.engine.distributed.zero import optimizer_numbers, unwrap
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.step import Training

# Tokenizer, manifests, metrics, file system blocks.
SMALL_FILES = 4 << 20


def checkpoint_bytes(training: Training) -> tuple[int, int]:
    """(bytes of a checkpoint, bytes of the model alone): fp32 weights, and the optimizer's state beside them."""
    model = 4 * sum(getattr(p, "ds_numel", p.numel()) for p in unwrap(training.model).parameters()) + SMALL_FILES
    return model + 4 * optimizer_numbers(training.optimizer), model


def check_space(root: Path, training: Training, keep_last: int) -> str | None:
    """A warning when the disk of `root` cannot hold all that the run keeps; ConfigError when not even one save fits."""
    checkpoint, model = checkpoint_bytes(training)
    free = shutil.disk_usage(root).free
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    # A save is written beside the one that it replaces.
    wanted = (keep_last + 1) * checkpoint + 3 * model
    figures = (
        f"a checkpoint takes about {_size(checkpoint)}, the model {_size(model)}; with keep_last={keep_last} the run "
        f"needs {_size(wanted)}, and {_size(free)} are free"
    )
    if free < checkpoint + model:
        raise ConfigError(f"{root}: too little room on the disk: {figures}. Make room, or run from another disk")
    return f"{root}: {figures}; saves will fail" if free + held < wanted else None


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn a failed allocation in the block into a ConfigError that says what needs less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"out of memory ({_first_line(error)}). Lower micro_batch_size (the batch stays as it is, in more parts), "
            "or set runtime.gradient_checkpointing=1. What was saved is intact: the same command goes on from there"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
