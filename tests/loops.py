"""Short training runs of a tiny decoder that learns to count."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from mini_llm.engine.batch import IGNORE_INDEX, BatchSplit
from mini_llm.engine.checkpoint.format import latest_checkpoint
from mini_llm.engine.evaluate import evaluate_loss
from mini_llm.engine.loop import train
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.settings import LoopConfig, OptimConfig, RuntimeConfig, ScheduleConfig, TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.model import CausalLM
from tests.models import VOCABULARY, decoder

LENGTH = 12


def accelerator(accumulation: int = 1) -> Accelerator:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return Accelerator(cpu=True, gradient_accumulation_steps=accumulation)


def config(**changes) -> LoopConfig:
    fields = {
        "max_steps": 8,
        "evaluate_every": 4,
        "save_every": 3,
        "runtime": RuntimeConfig(precision="fp32", device="cpu"),
        "schedule": ScheduleConfig(warmup_steps=2),
        "optim": OptimConfig(lr=1e-2),
    }
    return LoopConfig(**{**fields, **changes})


def rows(step: int, count: int = 8) -> torch.Tensor:
    """Sequences that count upwards from a random token."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(VOCABULARY, (count, 1), generator=generator)
    return (start + torch.arange(LENGTH + 1)) % VOCABULARY


def batches(step: int, split: BatchSplit) -> list[dict[str, torch.Tensor]]:
    """The micro-batches of a step; a random 40 % of the labels are ignored."""
    ids = rows(step, split.global_batch_size)
    labels = ids[:, 1:].clone()
    drop = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1000 + step)) < 0.4
    labels[drop] = IGNORE_INDEX
    parts = zip(split.micro_batches(ids[:, :-1].numpy()), split.micro_batches(labels.numpy()), strict=True)
    return [
        {"input_ids": torch.from_numpy(x).contiguous(), "labels": torch.from_numpy(y).contiguous()} for x, y in parts
    ]


def fresh(seed: int = 0) -> CausalLM:
    torch.manual_seed(seed)
    return CausalLM(decoder(dropout=0.1))


def run(
    path: Path,
    settings: LoopConfig,
    split: BatchSplit = BatchSplit(8, 8),
    make=batches,
    model=None,
    evaluate=None,
    tracking: TrackingConfig = TrackingConfig(wandb="disabled"),
    **options,
):
    """Launch a run once and return its scores."""
    engine = accelerator(split.accumulation)

    def held_out_loss(model) -> dict[str, float]:
        held_out = [{"input_ids": rows(9999)[:, :-1], "labels": rows(9999)[:, 1:]}]
        return {"val/loss": evaluate_loss(model, held_out, engine)["loss"]}

    with (
        RunDirectory(path) as directory,
        Tracker(path, tracking, "pretrain", {}) as tracker,
    ):
        return train(
            model or fresh(),
            lambda step: make(step, split),
            evaluate or held_out_loss,
            settings,
            engine,
            directory,
            tracker,
            lambda directory: None,
            **options,
        )


def final_files(path: Path) -> dict[str, bytes]:
    """What a finished run leaves: its model, its last optimizer state and its metrics."""
    last = sorted((path / "checkpoints").glob("step-*"))[-1]
    files = {"model": path / "model" / "model.safetensors", "optimizer": last / "optimizer.safetensors"}
    return {name: file.read_bytes() for name, file in files.items()} | {
        "metrics": (path / "metrics.jsonl").read_bytes()
    }


def checkpoint(path: Path) -> Path:
    """Train in `path` and return the newest checkpoint."""
    run(path, config())
    return latest_checkpoint(path, print)
