"""One step of a run again: from the checkpoint before it, bit for bit, with a look at what went into it."""

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
from safetensors.torch import save_file
from torch import Tensor, nn

from mini_llm.engine.batch import Batch
from mini_llm.engine.budget import Pace
from mini_llm.engine.checkpoint.format import find_damage, load_checkpoint, read_manifest
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.zero import innermost
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.spikes import Documents
from mini_llm.engine.step import prepare, seed_step, train_step

EXCERPT_CHARACTERS = 100


@dataclass
class Replay:
    """Takes the place of engine.loop.train in a stage; `target` is the step as metrics.jsonl counts it, from 1.

    decode(ids): the text of token ids. dump: a safetensors file for this rank's micro-batches, "<micro-batch>/<name>".
    """

    target: int
    decode: Callable[[Iterable[int]], str]
    dump: Path | None = None
    # Squared norm of the gradient by parameter group, as the optimizer got it.
    squares: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __call__(
        self,
        model: nn.Module,
        batches: Callable[[int], list[Batch]],
        evaluate: Any,
        config: Any,
        accelerator: Accelerator,
        run: RunDirectory,
        tracker: Any,
        decorate: Any,
        *,
        early_batches: Callable[[int], list[Batch]] | None = None,
        class_weights: Tensor | None = None,
        documents: Documents | None = None,
        **_: Any,
    ) -> dict[str, float]:
        """Compute the steps from the newest intact checkpoint before `target` up to it; print; change nothing.

        Raises ConfigError for a step that the run has not computed.
        """
        main = accelerator.is_main_process
        rows = read_rows(run.path / "metrics.jsonl")
        recorded = [row for row in rows if row["step"] == self.target and "train/loss" in row]
        last = max((row["step"] for row in rows), default=0)
        if not 1 <= self.target <= last:
            raise ConfigError(
                f"{run.path}: step {self.target} is not one of the steps 1 to {last} that it has computed"
            )
        pace = Pace(run, config, 1.0, accelerator)
        training = prepare(model, config, accelerator)
        if class_weights is not None:
            class_weights = class_weights.to(accelerator.device)
        found = broadcast(checkpoint_before(run.path, self.target) if main else None, accelerator)
        first = load_checkpoint(found, training.model, training.optimizer, accelerator)["step"] if found else 0
        for step in range(first, self.target):
            schedule = pace.schedule_at(step)
            factor = schedule.factor(step)
            seed_step(config.seed, step, accelerator.process_index)
            early = early_batches is not None and not schedule.falling(step)
            micro_batches = early_batches(step) if early else batches(step)
            if step == self.target - 1:
                innermost(training.optimizer).register_step_pre_hook(self._measure)
            loss, norm = train_step(training, micro_batches, factor, config.optim.max_grad_norm, class_weights)
        seen = {"train/loss": loss, "train/grad_norm": norm, "train/lr": training.learning_rates[0] * factor}
        squares = self._summed(accelerator)
        if self.dump is not None:
            self._save(micro_batches, accelerator)
        names = [documents(self.target - 1, rank, early) for rank in range(accelerator.num_processes)]
        excerpts = [[self._excerpts(batch) for batch in micro_batches]]
        if accelerator.num_processes > 1:
            excerpts = gather_object(excerpts)
        if main:
            origin = f"{found.name}, {self.target - first} steps before" if found else "the beginning"
            Console(soft_wrap=True).print(f"{run.path}: step {self.target}, from {origin}", markup=False)
            same = compare(seen, recorded[0] if recorded else {}, squares)
            self._print_batch(names, excerpts)
            ranks = read_manifest(found).get("ranks") if found else None
            if not same and ranks not in (None, accelerator.num_processes):
                print(f"The run had {ranks} processes: bit for bit it is with torchrun --nproc-per-node {ranks}")
        return seen

    def _measure(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            self.squares[group["name"]] += sum(float(g.double().square().sum()) for g in gradients)

    def _summed(self, accelerator: Accelerator) -> dict[str, float]:
        """Squares over all ranks: under ZeRO each holds the gradients of its shards, else all hold all of them."""
        mine = dict(self.squares)
        if accelerator.distributed_type != "DEEPSPEED":
            return mine
        parts = gather_object([mine])
        return {name: sum(part.get(name, 0.0) for part in parts) for name in mine}

    def _excerpts(self, batch: Batch) -> list[str]:
        texts = [self.decode(ids.tolist()) for ids in batch["input_ids"]]
        return [" ".join(text.split())[:EXCERPT_CHARACTERS] for text in texts]

    def _save(self, micro_batches: list[Batch], accelerator: Accelerator) -> None:
        tensors = {
            f"{number}/{name}": value.contiguous()
            for number, batch in enumerate(micro_batches)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        path = self.dump
        if accelerator.num_processes > 1:
            path = path.with_name(f"{path.stem}-{accelerator.process_index}{path.suffix}")
        save_file(tensors, str(path))
        print(f"{path}: {len(tensors)} tensors of {len(micro_batches)} micro-batches")

    def _print_batch(self, names: list[list[list[str]]], excerpts: list[list[list[str]]]) -> None:
        for rank, parts in enumerate(names):
            for number, documents in enumerate(parts):
                print(f"rank {rank}, micro-batch {number}: {', '.join(dict.fromkeys(documents))}")
                print("\n".join(f"    {text}" for text in excerpts[rank][number]))


def checkpoint_before(path: Path, step: int) -> Path | None:
    """The newest intact checkpoint from which step number `step` is still to come."""
    for directory in sorted((path / "checkpoints").glob("step-*"), reverse=True):
        if directory.name[5:].isdigit() and int(directory.name[5:]) < step and find_damage(directory) is None:
            return directory
    return None


def compare(seen: dict[str, float], recorded: dict[str, Any], squares: dict[str, float]) -> bool:
    """Print what was computed beside the record; whether all that is recorded is equal."""
    table = Table("", "replayed", "recorded", "")
    equal = [seen[name] == recorded.get(name) for name in seen]
    for (name, value), same in zip(seen.items(), equal, strict=True):
        known = recorded.get(name)
        table.add_row(name, repr(value), repr(known), "equal" if same else "not recorded" if known is None else "OTHER")
    # The optimizer gets clipped gradients; their shares of the norm are those of the gradient itself.
    total = sum(squares.values())
    for name, square in squares.items():
        norm = seen["train/grad_norm"] * (square / total) ** 0.5 if total else 0.0
        table.add_row(
            f"gradient norm of {name}", f"{norm:.6g}", "", f"{square / total:.0%} of its square" if total else ""
        )
    if not squares:
        table.add_row("the step was left out", "", "", "")
    Console(width=110).print(table)
    return all(equal)
