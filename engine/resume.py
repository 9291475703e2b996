"""Where a run goes on from, and what it ends with: progress, the newest intact checkpoint, the model it leaves."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from engine.anomalies import Anomalies
from engine.checkpoint import (
    Decorate,
    damage_of_best,
    export_model,
    latest_checkpoint,
    load_best,
    load_checkpoint,
    read_manifest,
)
from engine.errors import CheckpointError
from engine.faults import fault_point
from engine.files import atomic_directory
from engine.pace import broadcast
from engine.run_directory import RunDirectory
from engine.saving import DISK_ERRORS
from engine.sharding import full_weight, unwrap
from engine.shards import Shards
from engine.step import Training
from engine.tracking import Tracker
from model.streaming import SHARD_BYTES, stream_model

# Facts in a checkpoint's manifest that may not change on the way, with what each of them is of.
BINDING = {
    "tokenizer_sha256": "tokenizer",
    "data_fingerprint": "data",
    "global_batch_size": "batch size over all ranks",
}


@dataclass
class Progressed:
    """What a checkpoint remembers beside tensors."""

    step: int = 0
    elapsed: float = 0.0
    best_step: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    # Evaluations since the best one.
    waited: int = 0
    anomalies: Anomalies = field(default_factory=Anomalies)


def resume(run: RunDirectory, training: Training, tracker: Tracker, facts: Mapping[str, Any]) -> Progressed:
    """Continue from the newest intact checkpoint, or start."""
    accelerator = training.accelerator
    main = accelerator.is_main_process
    found = latest_checkpoint(run.path, _say, set_aside=True) if main else None
    found = broadcast(found, accelerator)
    if found is None:
        tracker.rewind(0)
        return Progressed()
    notes = _compare_facts(found, read_manifest(found), facts)
    loaded = load_checkpoint(found, training.model, training.optimizer, accelerator)
    loaded["anomalies"] = Anomalies(**loaded.get("anomalies", {}))
    state = Progressed(**{f.name: loaded[f.name] for f in fields(Progressed) if f.name in loaded})
    lost = broadcast(damage_of_best(run.path, state.best_step) if main else None, accelerator)
    if lost:
        state.best, state.best_step = {}, None
    tracker.rewind(state.step)
    if main:
        for note in (*notes, f"{run.path}: going on from step {state.step}"):
            _say(note)
    return state


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _compare_facts(directory: Path, before: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Notes on what is launched differently. Raises CheckpointError when tokenizer, data or batch are others."""
    changed = {name: (before[name], facts[name]) for name in facts if before.get(name) not in (None, facts[name])}
    for name, what in BINDING.items():
        if name in changed:
            old, new = changed[name]
            raise CheckpointError(
                f"{directory}: this run was trained with another {what} ({name} {old}, now {new}), and would not be "
                "the run that it was. Put back what it was started with; or start another run with RUN=another-name, "
                "from these weights with --init"
            )
    return [f"{directory}: {name} was {old}, is {new}" for name, (old, new) in changed.items()]


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
