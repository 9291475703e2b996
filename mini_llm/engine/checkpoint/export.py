"""The trained weights as a Hugging Face directory: run.model."""

from contextlib import ExitStack
from pathlib import Path

from torch import nn

from mini_llm.engine.checkpoint.format import DISK_ERRORS, Decorate, export_model, load_best
from mini_llm.engine.checkpoint.shard_files import Shards
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.zero import full_weight, unwrap
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.run.files import atomic_directory
from mini_llm.engine.step import Training
from mini_llm.model.huggingface.streamed import SHARD_BYTES, stream_model


def export(training: Training, run: RunDirectory, best_step: int | None, decorate: Decorate) -> None:
    """Write run.model from the weights of `best_step`, or the last ones. Raises CheckpointError on every rank."""
    accelerator = training.accelerator
    failure = None
    try:
        if accelerator.is_main_process:
            fault_point("export")
        if best_step is None:
            export_last(training, run.model, decorate)
        elif accelerator.is_main_process:
            weights = load_best(run.path, best_step)
            if isinstance(weights, Path):
                export_shards(unwrap(training.model), weights, run.model, decorate)
            else:
                export_model(run.model, unwrap(training.model), weights, decorate)
    except DISK_ERRORS as error:
        failure = (
            f"{run.model}: the trained model could not be written ({getattr(error, 'strerror', None) or error}). "
            "The checkpoints are intact: make room there, and the same command ends the run"
        )
    except CheckpointError as error:
        failure = str(error)
    failure = broadcast(failure, accelerator)
    if failure is not None:
        raise CheckpointError(failure)


def export_last(training: Training, target: Path, decorate: Decorate, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the weights as they are to a Hugging Face directory, gathering one at a time; every rank calls this.

    Raises OSError or SafetensorError on the main process.
    """
    main, model = training.accelerator.is_main_process, unwrap(training.model)
    weights = model.state_dict(keep_vars=True)
    directory, failure = None, None
    with ExitStack() as stack:
        if main:
            try:
                directory = stack.enter_context(atomic_directory(target))
            except OSError as error:
                failure = error
        stream_model(model, lambda name: full_weight(weights[name], keep=directory is not None), directory, shard_bytes)
        if failure is not None:
            raise failure
        if main:
            fault_point("export-model")
            decorate(directory)


def export_shards(
    model: nn.Module, checkpoint: Path, target: Path, decorate: Decorate, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the weights of a sharded checkpoint to a Hugging Face directory, reading one at a time; on one rank.

    `model` says the architecture. Raises OSError, SafetensorError, CheckpointError.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    # Tied weights are there once.
    stored = {name: names[parameter] for name, parameter in model.named_parameters(remove_duplicate=False)}
    with Shards(checkpoint) as shards, atomic_directory(target) as directory:
        stream_model(model, lambda name: shards.whole(stored[name]), directory, shard_bytes)
        fault_point("export-model")
        decorate(directory)
