"""Trains what test_zero.py checks, on one or two processes: `torchrun -m tests.distributed.zero_worker OUT.json`."""

import json
import os
import sys
from pathlib import Path

import torch

from chaos.equivalence.ranks import LAYOUTS, advance, start
from mini_llm.engine.checkpoint.export import export_last
from mini_llm.engine.cli import end_process
from mini_llm.engine.distributed.zero import gather_state, gather_weights, restore_state
from mini_llm.engine.errors import CheckpointError
from mini_llm.model import load_model

BEFORE, AFTER = range(4), range(4, 8)


def one() -> dict:
    """One process without DeepSpeed: the reference, and what it would be without clipping."""
    seen = {f"{o} {p}": advance(start(None, o, p), range(8)) for o in ("adamw", "muon") for p in ("fp32", "bf16")}
    return {**seen, "unclipped": advance(start(None, "muon", "fp32", clip=0.0), range(8), clip=0.0)}


def two(folder: Path) -> dict:
    seen, states = {}, {}
    for name, stage in LAYOUTS.items():
        for optimizer in ("adamw", "muon"):
            training = start(stage, optimizer, "fp32")
            first = advance(training, BEFORE)
            if optimizer == "muon":
                states[name] = gather_state(training.model, training.optimizer)
            seen[f"{name} {optimizer} fp32"] = first + advance(training, AFTER)
            seen[f"{name} {optimizer} bf16"] = advance(start(stage, optimizer, "bf16"), range(8))
        seen[f"{name} backend"] = torch.distributed.get_backend()
        seen[f"{name} kind"] = training.accelerator.distributed_type.value
        if stage:
            seen[f"{name} accumulates in"] = str(training.model.get_data_types()[1])
            seen[f"{name} clips at"] = training.model.gradient_clipping()
    reference = states["DDP"]
    for name, state in states.items():
        for ours, theirs in zip(state, reference, strict=True):
            assert ours.keys() == theirs.keys(), name
            seen[f"{name} state"] = max(float((ours[key] - theirs[key]).abs().max()) for key in ours)
    for source, state in states.items():
        for target, stage in LAYOUTS.items():
            training = start(stage, "muon", "fp32")
            restore_state(training.model, training.optimizer, *state)
            seen[f"{source} to {target}"] = advance(training, AFTER)
    training = start(3, "adamw", "fp32")
    try:
        restore_state(training.model, training.optimizer, *states["ZeRO 3"])
    except CheckpointError as error:
        seen["refused"] = str(error)
    seen["streamed"] = streamed(folder)
    seen["16 bit"] = sixteen_bit(folder)
    return seen


def streamed(folder: Path) -> dict[str, float]:
    """The directory that ZeRO-3 writes tensor by tensor: its files, and how far its weights are from gathered ones."""
    training = start(3, "muon", "fp32")
    advance(training, BEFORE)
    export_last(training, folder / "streamed", lambda directory: None, shard_bytes=8000)
    weights = gather_weights(training.model)
    assert not gather_weights(training.model, keep=False)
    training.accelerator.wait_for_everyone()
    found = load_model(folder / "streamed").state_dict()
    gap = max(float((weights[name] - found[name]).abs().max()) for name in weights)
    return {"files": len(list((folder / "streamed").glob("model-*.safetensors"))), "gap": gap}


def sixteen_bit(folder: Path) -> dict[str, float]:
    """DeepSpeed's own bf16 under ZeRO-3: how many gathered weights no bf16 number could hold, and the last loss."""
    file = folder / f"ds{os.environ['RANK']}.json"
    file.write_text('{"bf16": {"enabled": true}}')
    training = start(3, "muon", "bf16", file=str(file))
    last = advance(training, range(8))[-1][0]
    assert all(p.dtype == torch.bfloat16 for p in training.model.parameters())
    weights = gather_weights(training.model).values()
    beyond = sum(int((w != w.bfloat16().float()).sum()) for w in weights)
    return {"beyond": beyond / sum(w.numel() for w in weights), "loss": last}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    result = two(out.parent) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else one()
    if int(os.environ.get("RANK", 0)) == 0:
        out.write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    end_process(0)
