"""Train on two ranks, one of which computes NaN or infinity. `torchrun -m chaos.non_finite OUT` writes JSON to OUT.

The loss, or only the gradient, becomes non-finite on rank 1 in one micro-batch of two consecutive steps.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from chaos.equivalence.ranks import LAYOUTS, advance, start
from mini_llm.engine.cli import end_process
from mini_llm.engine.distributed.zero import gather_state, unwrap
from mini_llm.engine.spikes import bad_ranks
from mini_llm.engine.step import TrainContext

CASES = [
    ("muon", "fp32", [("loss", math.inf), ("gradient", math.nan)]),
    ("adamw", "bf16", [("loss", math.nan)]),
]


def poison(training: TrainContext, where: str, value: float) -> Any:
    """Make the loss or the gradient of the next forward pass on rank 1 non-finite; returns the handle of the hook."""
    calls = []

    def spoil(module: Any, inputs: Any, hidden: torch.Tensor) -> torch.Tensor | None:
        calls.append(1)
        if os.environ["RANK"] != "1" or len(calls) > 1:
            return None
        if where == "gradient":
            hidden.register_hook(lambda gradient: gradient * value)
            return None
        spoilt = torch.ones_like(hidden)
        spoilt[0, 0] = value
        return hidden * spoilt

    return unwrap(training.model).trunk.register_forward_hook(spoil)


def look(stage: int | None, optimizer: str, precision: str, where: str, value: float) -> dict[str, Any]:
    training = start(stage, optimizer, precision)
    advance(training, range(2))
    before = gather_state(training.model, training.optimizer)
    seen = []
    for step in (2, 3):
        handle = poison(training, where, value)
        [(loss, norm)] = advance(training, range(step, step + 1))
        handle.remove()
        seen.append([math.isfinite(loss), math.isfinite(norm), bad_ranks(training)])
    after = gather_state(training.model, training.optimizer)
    same = all(torch.equal(old[key], new[key]) for old, new in zip(before, after, strict=True) for key in old)
    return {"seen": seen, "untouched": same, "later": advance(training, range(4, 6))}


def main(out: Path) -> None:
    results = {}
    for name, stage in LAYOUTS.items():
        for optimizer, precision, faults in CASES:
            clean = start(stage, optimizer, precision)
            advance(clean, range(2))
            results[f"{name} {precision} expected"] = advance(clean, range(4, 6))
            for where, value in faults:
                results[f"{name} {precision} {where} {value}"] = look(stage, optimizer, precision, where, value)
    if os.environ["RANK"] == "0":
        out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    torch.distributed.barrier()
    end_process(0)
