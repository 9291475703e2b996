"""The trained model as a Hugging Face directory, run.model: from memory, or from the best weights on disk."""

from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from mini_llm.engine.checkpoint.format import DISK_ERRORS, SaveExtras, load_best
from mini_llm.engine.checkpoint.shard_files import ShardReader
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.zero import full_weight, unwrap
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.run.files import atomic_directory
from mini_llm.engine.step import TrainContext
from mini_llm.model import Model, save_model
from mini_llm.model.huggingface.streamed import SHARD_BYTES, stream_model


def export(context: TrainContext, run: RunDirectory, best_step: int | None, save_extras: SaveExtras) -> None:
    """Write run.model from the weights of `best_step`, or from the last weights when it is None.

    Every rank calls this. Raises CheckpointError on every rank.
    """
    accelerator = context.accelerator
    failure = None
    try:
        if accelerator.is_main_process:
            fault_point("export")
        if best_step is None:
            export_last(context, run.model, save_extras)
        elif accelerator.is_main_process:
            model, weights = unwrap(context.model), load_best(run.path, best_step)
            if isinstance(weights, Path):
                export_shards(model, weights, run.model, save_extras)
            else:
                _export_weights(model, weights, run.model, save_extras)
    except DISK_ERRORS as error:
        failure = (
            f"{run.model}: the trained model could not be written ({getattr(error, 'strerror', None) or error}). "
            "The checkpoints are intact: make room there, and run the same command again to finish"
        )
    except CheckpointError as error:
        failure = str(error)
    failure = broadcast(failure, accelerator)
    if failure is not None:
        raise CheckpointError(failure)


def export_last(context: TrainContext, target: Path, save_extras: SaveExtras, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the current weights to a Hugging Face directory, gathering one tensor at a time; every rank calls this.

    Raises OSError or SafetensorError on the main process.
    """
    main, model = context.accelerator.is_main_process, unwrap(context.model)
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
        if directory is not None:
            fault_point("export-model")
            save_extras(directory)


def export_shards(
    model: Model, checkpoint: Path, target: Path, save_extras: SaveExtras, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the weights of a sharded checkpoint to a Hugging Face directory, one tensor at a time; on one rank.

    `model` gives the architecture only. Raises OSError, SafetensorError, CheckpointError.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    # A checkpoint stores tied weights once, under the first of their names.
    stored = {name: names[parameter] for name, parameter in model.named_parameters(remove_duplicate=False)}
    with ShardReader(checkpoint) as reader, atomic_directory(target) as directory:
        stream_model(model, lambda name: reader.read_tensor(stored[name]), directory, shard_bytes)
        fault_point("export-model")
        save_extras(directory)


def _export_weights(model: Model, weights: dict[str, Tensor], target: Path, save_extras: SaveExtras) -> None:
    with atomic_directory(target) as directory:
        save_model(model, directory, weights)
        fault_point("export-model")
        save_extras(directory)
