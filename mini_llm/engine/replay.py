"""Recompute one step of a run, bit for bit, from the checkpoint before it, and show what went into it."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mini_llm.engine.batch import Batch
from mini_llm.engine.budget import StepBudget
from mini_llm.engine.checkpoint.format import find_damage, load_checkpoint, read_manifest
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.zero import innermost
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.loss import Objective
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.spikes import Documents, document_names
from mini_llm.engine.step import prepare, seed_step, train_step
from mini_llm.model.huggingface.weights import save_tensors

EXCERPT_CHARACTERS = 100


@dataclass
class Replay:
    """Takes the place of mini_llm.engine.loop.train in a stage.

    target: the step to recompute, counted from 1 as in metrics.jsonl. decode(ids): the text of token ids.
    dump: a safetensors file for this rank's micro-batches, with keys "<micro-batch>/<name>".
    """

    target: int
    decode: Callable[[Iterable[int]], str]
    dump: Path | None = None
    # Squared norm of the gradient that the optimizer gets, by parameter group.
    squares: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __call__(
        self,
        model: nn.Module,
        batches: Callable[[int], list[Batch]],
        evaluate: Any,
        config: Any,
        accelerator: Accelerator,
        run: RunDirectory,
        *_: Any,
        clm_batches: Callable[[int], list[Batch]] | None = None,
        class_weights: Tensor | None = None,
        objective: Objective | None = None,
        documents: Documents | None = None,
        **__: Any,
    ) -> dict[str, float]:
        """Compute the steps from the newest intact checkpoint before `target` up to it and print what it gave.

        Changes nothing in the run. Raises ConfigError for a step that the run has not computed.
        """
        rows = read_rows(run.path / "metrics.jsonl")
        recorded = next((row for row in rows if row["step"] == self.target and "train/loss" in row), {})
        last = max((row["step"] for row in rows), default=0)
        if not 1 <= self.target <= last:
            raise ConfigError(f"{run.path}: there is no step {self.target}; the run has computed the steps 1 to {last}")
        main = accelerator.is_main_process
        budget = StepBudget(run, config, 1.0, accelerator)
        context = prepare(model, config, accelerator)
        context.objective = objective
        if class_weights is not None:
            class_weights = class_weights.to(accelerator.device)
        found = broadcast(checkpoint_before(run.path, self.target) if main else None, accelerator)
        first = load_checkpoint(found, context.model, context.optimizer, accelerator)["step"] if found else 0
        for step in range(first, self.target):
            schedule = budget.schedule_at(step)
            factor = schedule.factor(step)
            seed_step(config.seed, step, accelerator.process_index)
            clm = clm_batches is not None and not schedule.falling(step)
            micro_batches = clm_batches(step) if clm else batches(step)
            if step == self.target - 1:
                innermost(context.optimizer).register_step_pre_hook(self._measure)
            loss, norm = train_step(context, micro_batches, factor, config.optim.max_grad_norm, class_weights)
        values = {"train/loss": loss, "train/grad_norm": norm, "train/lr": context.learning_rates[0] * factor}
        squares = self._sum_squares(accelerator)
        if self.dump is not None:
            save_batch(self.dump, micro_batches, accelerator)
        excerpts = [[self._excerpt(ids) for batch in micro_batches for ids in batch["input_ids"]]]
        if accelerator.num_processes > 1:
            excerpts = gather_object(excerpts)
        if main:
            origin = f"{found.name}, {self.target - first} steps before" if found else "the beginning"
            Console(soft_wrap=True).print(f"{run.path}: step {self.target}, from {origin}", markup=False)
            same = compare(values, recorded, squares)
            for rank, texts in enumerate(excerpts):
                print(f"rank {rank}: {', '.join(document_names(documents, self.target, clm, [rank]))}")
                print("\n".join(f"    {text}" for text in texts))
            ranks = read_manifest(found).get("ranks") if found else None
            if not same and ranks not in (None, accelerator.num_processes):
                print(f"The run had {ranks} processes; for equal bits use torchrun --nproc-per-node {ranks}")
        return values

    def _measure(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            self.squares[group["name"]] += sum(float(g.double().square().sum()) for g in gradients)

    def _sum_squares(self, accelerator: Accelerator) -> dict[str, float]:
        """Sum over ranks under ZeRO, where each has the gradients of its shards; otherwise every rank has them all."""
        mine = dict(self.squares)
        if accelerator.distributed_type != "DEEPSPEED":
            return mine
        parts = gather_object([mine])
        return {name: sum(part.get(name, 0.0) for part in parts) for name in mine}

    def _excerpt(self, ids: Tensor) -> str:
        return " ".join(self.decode(ids.tolist()).split())[:EXCERPT_CHARACTERS]


def save_batch(path: Path, micro_batches: list[Batch], accelerator: Accelerator) -> None:
    """Write this rank's tensors to a safetensors file; with several processes the rank is added to its name."""
    tensors = {
        f"{number}/{name}": value.contiguous()
        for number, batch in enumerate(micro_batches)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
    if accelerator.num_processes > 1:
        path = path.with_name(f"{path.stem}-{accelerator.process_index}{path.suffix}")
    save_tensors(tensors, path)
    print(f"{path}: {len(tensors)} tensors of {len(micro_batches)} micro-batches")


def checkpoint_before(path: Path, step: int) -> Path | None:
    """The newest intact checkpoint of the run at `path` written before `step`, counted from 1."""
    for directory in sorted((path / "checkpoints").glob("step-*"), reverse=True):
        if directory.name[5:].isdigit() and int(directory.name[5:]) < step and find_damage(directory) is None:
            return directory
    return None


def compare(values: dict[str, float], recorded: dict[str, Any], squares: dict[str, float]) -> bool:
    """Print the recomputed values beside the recorded ones; returns whether all are equal."""
    table = Table("", "replayed", "recorded", "")
    for name, value in values.items():
        known = recorded.get(name)
        verdict = "equal" if value == known else "not recorded" if known is None else "DIFFERENT"
        table.add_row(name, repr(value), repr(known), verdict)
    # The optimizer gets clipped gradients; each group's share of the squared norm is the same before clipping.
    total = sum(squares.values())
    for name, square in squares.items():
        share = square / total if total else 0.0
        norm = values["train/grad_norm"] * share**0.5
        table.add_row(f"gradient norm of {name}", f"{norm:.6g}", "", f"{share:.0%} of its square")
    if not squares:
        table.add_row("the step was skipped", "", "", "")
    Console(width=110).print(table)
    return all(value == recorded.get(name) for name, value in values.items())
