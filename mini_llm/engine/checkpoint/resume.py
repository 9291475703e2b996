"""Where a run goes on from, and what it ends with: progress, the newest intact checkpoint, the model it leaves."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mini_llm.engine.checkpoint.format import (
    damage_of_best,
    latest_checkpoint,
    load_checkpoint,
    read_manifest,
)
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.tracker import Tracker
from mini_llm.engine.spikes import Anomalies
from mini_llm.engine.step import Training

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
