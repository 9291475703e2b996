"""Saves and loads what test_sharded.py checks: `torchrun -m tests.checkpoint.sharded_worker FOLDER` on two processes.

It writes FOLDER/seen.json.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.utils import gather_object

from chaos.equivalence.ranks import LAYOUTS, advance, start
from mini_llm.engine.checkpoint.export import export, export_shards
from mini_llm.engine.checkpoint.format import load_checkpoint, step_path
from mini_llm.engine.checkpoint.saver import Saver
from mini_llm.engine.checkpoint.sharded_saver import ShardedSaver
from mini_llm.engine.cli import end_process
from mini_llm.engine.distributed.zero import gather_state
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.step import TrainContext
from tests.alive import Alive

BEFORE, AFTER = range(4), range(4, 8)
# Muon is tested with every pair of stages; AdamW with each stage once as source and once as target.
RING = dict(zip(LAYOUTS, [*list(LAYOUTS)[1:], "DDP"], strict=True))


def nothing(directory: Path) -> None:
    pass


def save(kind: type[Saver], root: Path, training: TrainContext, state: dict) -> None:
    with kind(root, training, nothing, 2, {}) as saver:
        if state.get("best_step") == state["step"]:
            saver.keep_best(state["step"])
        saver.save(state)
        saver.finish()


def load(root: Path, training: TrainContext, step: int = 4) -> dict:
    return load_checkpoint(step_path(root, step), training.model, training.optimizer, training.accelerator)


def gap(one: tuple, other: tuple) -> float:
    """Largest absolute difference between two (weights, optimizer state)."""
    assert all(ours.keys() == theirs.keys() for ours, theirs in zip(one, other, strict=True))
    pairs = [(ours[key], theirs[key]) for ours, theirs in zip(one, other, strict=True) for key in ours]
    return max(float((a - b).abs().max()) for a, b in pairs)


def state_of(training: TrainContext) -> tuple:
    return gather_state(training.model, training.optimizer)


def transitions(folder: Path, optimizer: str) -> dict:
    seen, saved, last = {}, {}, {}
    for name, stage in LAYOUTS.items():
        training = start(stage, optimizer, "fp32")
        advance(training, BEFORE)
        save(ShardedSaver, folder / optimizer / name, training, {"step": 4, "best_step": 4})
        saved[name] = state_of(training)
        seen[f"{name} {optimizer}"] = advance(training, AFTER)
        last[name] = state_of(training)
    for source in LAYOUTS:
        # Both ranks need the same order.
        targets = list(LAYOUTS) if optimizer == "muon" else [source, RING[source]]
        for target in targets:
            training = start(LAYOUTS[target], optimizer, "fp32")
            load(folder / optimizer / source, training)
            key = f"{source} -> {target} {optimizer}"
            seen[f"{key} loaded"] = gap(state_of(training), saved[source])
            seen[key] = advance(training, AFTER if source == target else AFTER[:1])
            if source == target:
                seen[f"{key} at the end"] = gap(state_of(training), last[source])
    return seen


def both_kinds(folder: Path) -> dict:
    """One run: sharded, full, then sharded again, each at another stage; exported from the first best weights."""
    root, seen = folder / "mixed", {}
    first = start(3, "muon", "fp32")
    load(folder / "muon" / "ZeRO 3", first)
    expected = state_of(first)
    save(ShardedSaver, root, first, {"step": 4, "best_step": 4})
    second = start(2, "muon", "fp32")
    load(root, second, 4)
    save(Saver, root, second, {"step": 8, "best_step": 4})
    third = start(1, "muon", "fp32")
    load(root, third, 8)
    seen["full after sharded"] = gap(state_of(third), expected)
    save(ShardedSaver, root, third, {"step": 12, "best_step": 4})
    last = start(3, "muon", "fp32")
    load(root, last, 12)
    seen["sharded after full"] = gap(state_of(last), expected)
    export(last, SimpleNamespace(path=root, model=root / "model"), 4, nothing)
    seen["names"] = sorted(path.name for path in (root / "checkpoints").iterdir())
    return seen


def memory(folder: Path) -> dict:
    """Peak memory of both ranks, and the size of all weights and states, in bytes."""
    training = start(3, "adamw", "fp32")
    advance(training, BEFORE)
    whole = state_of(training)
    seen = {"all": sum(4 * tensor.numel() for part in whole for tensor in part.values())}
    seen["weights"] = sum(4 * tensor.numel() for tensor in whole[0].values())
    seen["largest"] = max(4 * tensor.numel() for tensor in whole[0].values())
    del whole
    for kind in (Saver, ShardedSaver):
        with Alive() as alive:
            save(kind, folder / kind.__name__, training, {"step": 4})
        seen[f"{kind.__name__} saves"] = gather_object([alive.peak])
        with Alive() as alive:
            load(folder / kind.__name__, training)
        seen[f"{kind.__name__} loads"] = gather_object([alive.peak])
    if training.accelerator.is_main_process:
        with Alive() as alive:
            checkpoint = step_path(folder / "ShardedSaver", 4)
            export_shards(training.model.module, checkpoint, folder / "streamed", nothing, shard_bytes=8000)
        seen["exports"] = alive.peak
    training.accelerator.wait_for_everyone()
    return seen


def a_full_disk(folder: Path) -> dict:
    """On rank 1 only: the error on every rank, what is left on disk, and whether the next save succeeds."""
    training, root = start(2, "muon", "fp32"), folder / "full"
    seen = {}
    os.environ["LLM_FAULT"] = "save-shard:1=enospc"
    with ShardedSaver(root, training, nothing, 2, {}) as saver:
        saver.save({"step": 4})
        try:
            saver.finish()
        except CheckpointError as error:
            seen["errors"] = gather_object([str(error)])
        training.accelerator.wait_for_everyone()
        seen["left"] = [path.name for path in (root / "checkpoints").iterdir()]
        del os.environ["LLM_FAULT"]
        saver.save({"step": 8})
        saver.finish()
    seen["next"] = [path.name for path in (root / "checkpoints").iterdir()]
    return seen


def sixteen_bit(folder: Path) -> dict:
    """DeepSpeed's own bf16, whose working weights are rounded fp32 shards: losses with and without a resume."""
    file = folder / f"ds{os.environ['RANK']}.json"
    file.write_text('{"bf16": {"enabled": true}}')
    seen = {}
    for name, stage in (("ZeRO 1", 1), ("ZeRO 3", 3)):
        training = start(stage, "muon", "bf16", file=str(file))
        advance(training, BEFORE)
        save(ShardedSaver, folder / "bf16" / name, training, {"step": 4})
        losses = advance(training, AFTER)
        again = start(stage, "muon", "bf16", file=str(file))
        load(folder / "bf16" / name, again)
        seen[name] = [losses, advance(again, AFTER)]
    return seen


def on_two_after_one(folder: Path) -> list:
    """Resume here under ZeRO 3 what one process saved in one/."""
    training = start(3, "muon", "fp32")
    load(folder / "one", training)
    losses = advance(training, AFTER)
    save(ShardedSaver, folder / "two", training, {"step": 8})
    return losses


def refused(folder: Path) -> str:
    training = start(3, "muon", "fp32")
    try:
        load(folder / "adamw" / "ZeRO 3", training)
    except CheckpointError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    here = Path(sys.argv[1])
    result = transitions(here, "muon") | transitions(here, "adamw") | both_kinds(here)
    result |= {"memory": memory(here), "full": a_full_disk(here), "two": on_two_after_one(here)}
    result |= {"refused": refused(here), "16 bit": sixteen_bit(here)}
    if int(os.environ["RANK"]) == 0:
        (here / "seen.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    end_process(0)
