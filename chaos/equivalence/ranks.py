"""Compare the losses of two processes with those of one: DDP and ZeRO 1, 2, 3; AdamW and Muon; fp32 and bf16.

    python -m chaos.equivalence.ranks

Each cell is the largest relative difference of the training loss over all steps. The reference is one process without
DeepSpeed, with the same optimizer and precision. Both train a small random decoder on the same rows, with gradient
accumulation and clipping. The exit code is 1 if a difference exceeds its bound: 1e-5 in fp32, 2e-3 in bf16.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.table import Table

from mini_llm.engine.batch import BatchSplit
from mini_llm.engine.cli import end_process
from mini_llm.engine.distributed.processes import make_accelerator, start_processes
from mini_llm.engine.settings import LoopConfig, OptimConfig, RuntimeConfig
from mini_llm.engine.step import TrainContext, prepare, seed_step, train_step
from mini_llm.model import CausalLM, ModelConfig

BOUNDS = {"fp32": 1e-5, "bf16": 2e-3}
LAYOUTS = {"DDP": None, "ZeRO 1": 1, "ZeRO 2": 2, "ZeRO 3": 3}
VOCABULARY, LENGTH, ROWS, MICRO = 96, 32, 8, 2
# Smaller than nearly every gradient norm, so that clipping is always tested.
CLIP = 0.5

app = typer.Typer(add_completion=False)


@app.command()
def main(
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 50,
    optimizers: Annotated[str, typer.Option(help="Optimizers, separated by commas.")] = "adamw,muon",
    precisions: Annotated[str, typer.Option(help="Precisions, separated by commas.")] = "fp32,bf16",
    worker: Annotated[Path | None, typer.Option(help="Internal: file for the losses of one launch.")] = None,
) -> None:
    """Print the largest relative difference of the loss between two processes and one, for every layout."""
    if worker is not None:
        work(worker, steps, optimizers.split(","), precisions.split(","))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        end_process(0)
    with tempfile.TemporaryDirectory() as folder:
        losses = measure(Path(folder), steps, optimizers, precisions)
    table = Table("optimizer", "precision", "1 process, last loss", *(f"{name} x 2" for name in LAYOUTS), "bound")
    worst = 0.0
    for optimizer in optimizers.split(","):
        for precision in precisions.split(","):
            one = losses[f"one {optimizer} {precision}"]
            gaps = [gap(losses[f"{name} {optimizer} {precision}"], one) for name in LAYOUTS]
            worst = max(worst, *(g / BOUNDS[precision] for g in gaps))
            row = (optimizer, precision, f"{one[-1]:.6f}", *(f"{g:.1e}" for g in gaps), f"{BOUNDS[precision]:.0e}")
            table.add_row(*row)
    Console(width=110).print(table)
    sys.exit(worst > 1)


def gap(losses: list[float], reference: list[float]) -> float:
    """The largest relative difference over all steps."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


def measure(folder: Path, steps: int, optimizers: str, precisions: str) -> dict[str, list[float]]:
    """Launch one process, then two; returns the losses by "<layout> <optimizer> <precision>"."""
    losses = {}
    settings = ["--steps", str(steps), "--optimizers", optimizers, "--precisions", precisions]
    for processes in (1, 2):
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"] if processes == 2 else []
        out = folder / f"{processes}.json"
        command = [sys.executable, "-m", *launcher, "chaos.equivalence.ranks", *settings, "--worker", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_DEEPSPEED": "false"}
        root = Path(__file__).parents[2]
        result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(result.stderr[-4000:])
        losses |= json.loads(out.read_text())
    return losses


def work(out: Path, steps: int, optimizers: list[str], precisions: list[str]) -> None:
    """Train with every layout of this number of processes; rank 0 writes the losses to `out`."""
    layouts = LAYOUTS if int(os.environ.get("WORLD_SIZE", 1)) > 1 else {"one": None}
    losses = {
        f"{name} {optimizer} {precision}": train(stage, optimizer, precision, steps)
        for name, stage in layouts.items()
        for optimizer in optimizers
        for precision in precisions
    }
    if int(os.environ.get("RANK", 0)) == 0:
        out.write_text(json.dumps(losses))


def train(stage: int | None, optimizer: str, precision: str, steps: int) -> list[float]:
    """The losses of `steps` steps; this rank reads its share of the rows."""
    return [loss for loss, _ in advance(start(stage, optimizer, precision), range(steps))]


def start(
    stage: int | None,
    optimizer: str,
    precision: str,
    clip: float = CLIP,
    file: str | None = None,
    micro: int = MICRO,
    device: Literal["auto", "cpu"] = "cpu",
) -> TrainContext:
    """Prepare a decoder with matrices of several shapes. `file` is a DeepSpeed configuration that replaces ours."""
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    os.environ.pop("ACCELERATE_DEEPSPEED_ZERO_STAGE", None)
    runtime = RuntimeConfig(device=device, precision=precision, zero_stage=stage or 0, deepspeed=file)
    config = LoopConfig(runtime=runtime, optim=OptimConfig(name=optimizer, max_grad_norm=clip))
    processes = start_processes(runtime)
    accelerator = make_accelerator(runtime, ROWS // micro // processes.num_processes, micro, clip)
    return prepare(tiny_decoder(), config, accelerator)


def advance(training: TrainContext, steps: range, clip: float = CLIP) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    accelerator = training.accelerator
    split = BatchSplit(ROWS, MICRO, accelerator.num_processes, accelerator.process_index)
    results = []
    for step in steps:
        seed_step(0, step, accelerator.process_index)
        results.append(train_step(training, [batch(rows) for rows in split.micro_batches(text(step))], 1.0, clip))
    return results


def tiny_decoder() -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(
        ModelConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            causal=True,
        )
    )


def text(step: int) -> np.ndarray:
    """Token ids (ROWS, LENGTH + 1). Each row counts up with its own stride, so that there is something to learn."""
    generator = np.random.default_rng(step)
    starts, strides = generator.integers(VOCABULARY, size=(ROWS, 1)), generator.integers(1, 4, size=(ROWS, 1))
    return (starts + strides * np.arange(LENGTH + 1)) % VOCABULARY


def batch(rows: np.ndarray) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(rows)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].contiguous()}


if __name__ == "__main__":
    app()
