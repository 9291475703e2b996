"""Where a run resumes: the train state and the newest intact checkpoint."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mini_llm.engine.checkpoint.format import damage_of_best, latest_checkpoint, load_checkpoint, read_manifest
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.spikes import SpikeMonitor
from mini_llm.engine.step import TrainContext
from mini_llm.engine.tracking.tracker import Tracker

# Metadata in a checkpoint's manifest that must stay the same for the whole run, with its name in messages.
MUST_MATCH = {
    "tokenizer_sha256": "tokenizer",
    "data_fingerprint": "data",
    "global_batch_size": "batch size over all ranks",
}


@dataclass
class TrainState:
    """What a checkpoint holds beside tensors; state.json has these keys."""

    step: int = 0
    # Seconds of training, over all launches.
    elapsed: float = 0.0
    best_step: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    # Evaluations since the best one.
    waited: int = 0
    # Step of the last evaluation.
    evaluated_at: int = 0
    spikes: SpikeMonitor = field(default_factory=SpikeMonitor)

    def record(self, metrics: dict[str, float], metric: str, larger_is_better: bool) -> bool:
        """Record the evaluation after `step`; returns whether it is the best so far."""
        sign = 1 if larger_is_better else -1
        self.latest = metrics
        if self.best and not sign * metrics[metric] > sign * self.best[metric]:
            self.waited += 1
            return False
        self.best, self.best_step, self.waited = metrics, self.step, 0
        return True


def resume(run: RunDirectory, context: TrainContext, tracker: Tracker, metadata: Mapping[str, Any]) -> TrainState:
    """Restore `context` from the newest intact checkpoint and return its state, or a new state without checkpoints.

    Collective. Raises CheckpointError when no checkpoint is intact or the run would not be the same.
    """
    accelerator = context.accelerator
    main = accelerator.is_main_process
    directory = broadcast(latest_checkpoint(run.path, _log, set_aside=True) if main else None, accelerator)
    if directory is None:
        tracker.rewind(0)
        return TrainState()
    notes = _compare_metadata(directory, read_manifest(directory), metadata)
    loaded = load_checkpoint(directory, context.model, context.optimizer, accelerator)
    # Earlier releases wrote the key "anomalies".
    loaded["spikes"] = SpikeMonitor(**loaded.get("spikes", loaded.get("anomalies", {})))
    state = TrainState(**{f.name: loaded[f.name] for f in fields(TrainState) if f.name in loaded})
    if broadcast(damage_of_best(run.path, state.best_step) if main else None, accelerator):
        state.best, state.best_step = {}, None
    tracker.rewind(state.step)
    if main:
        for note in (*notes, f"{run.path}: resuming from step {state.step}"):
            _log(note)
    return state


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _compare_metadata(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Notes on what changed since the checkpoint. Raises CheckpointError when one of MUST_MATCH did."""
    changed = {name: (before[name], now[name]) for name in now if before.get(name) not in (None, now[name])}
    for name, what in MUST_MATCH.items():
        if name in changed:
            old, new = changed[name]
            raise CheckpointError(
                f"{directory}: this run was trained with another {what} ({name} was {old}, is now {new}). Restore what "
                "it was started with, or start a new run from these weights with RUN=new-name and --init"
            )
    return [f"{directory}: {name} was {old}, is now {new}" for name, (old, new) in changed.items()]
