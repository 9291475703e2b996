"""What every training of this stage does alike: batches of similar length, resolved settings, evaluation, the loop."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from mini_llm.engine.batch import Batch, LengthBatches, ordered_batches, to_device
from mini_llm.engine.checkpoint.format import SaveExtras
from mini_llm.engine.device import default_device
from mini_llm.engine.distributed.processes import make_accelerator, resolved_runtime
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.loop import train
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.model import Model, ModelConfig

from .config import FinetuneConfig

# Tokens per rank in one training forward pass, if micro_batch_size is not set.
MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 65_536}
# Validation texts below which they do not choose the weights.
FEW_HELD_OUT = 500

T = TypeVar("T")
Collate = Callable[[np.ndarray], Batch]  # from indices of examples to a padded batch


class Fit:
    """One training: how its examples are batched, and the settings that follow from the data and the model.

    lengths: tokens of each training example (N,). micro_batch_tokens: tokens per rank in one forward pass, if
    config.micro_batch_size is not set; None: by the device. `resolve` comes before `run`.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        lengths: np.ndarray,
        processes: PartialState,
        micro_batch_tokens: int | None = None,
    ) -> None:
        self.config, self.lengths, self.ranks = config, lengths, processes.num_processes
        tokens = micro_batch_tokens or MICRO_BATCH_TOKENS[default_device(config.runtime.device).type]
        self.accumulation = self._accumulation(tokens)
        self.micro_batch_size = max(1, config.batch_size // (self.accumulation * self.ranks))
        self.batches = self.batches_of(processes.process_index)
        self.accelerator = make_accelerator(
            config.runtime, self.accumulation, self.micro_batch_size, config.optim.max_grad_norm
        )
        self.steps = round(config.epochs * self.batches.steps_per_epoch)

    def _accumulation(self, micro_batch_tokens: int) -> int:
        """Return the micro-batches per step and rank that keep a forward pass within `micro_batch_tokens`."""
        config, ranks = self.config, self.ranks
        if config.micro_batch_size:
            return max(1, -(-config.batch_size // (config.micro_batch_size * ranks)))
        tokens = config.batch_size / ranks * float(np.quantile(self.lengths, 0.9))
        return max(1, min(config.batch_size // ranks, round(tokens / micro_batch_tokens)))

    def batches_of(self, rank: int) -> LengthBatches:
        config = self.config
        return LengthBatches(self.lengths, config.batch_size, config.seed, self.ranks, rank, self.accumulation)

    def resolve(
        self,
        model: ModelConfig,
        run: RunDirectory,
        tracker: Tracker,
        least_steps: int = 1,
        starts_as_bag: bool = False,
        **chosen: Any,
    ) -> FinetuneConfig:
        """Choose the steps and the learning rates, and record the settings that the run has, with those `chosen`."""
        config = self.config
        self.steps = max(least_steps, self.steps)
        max_steps = min(config.max_steps or self.steps, self.steps)
        optim = config.optim.for_width(model.hidden_size, starts_as_bag)
        chosen |= {"run": config.run_name, "micro_batch_size": self.micro_batch_size, "max_steps": max_steps}
        chosen |= {"optim": optim.resolved()}
        chosen["runtime"] = resolved_runtime(config.runtime, compiled=config.runtime.compile is True)
        resolved = config.model_copy(update=chosen).model_dump(mode="json")
        run.resolve(resolved)
        tracker.config(resolved)
        self.config = config.model_copy(update={"max_steps": max_steps, "optim": optim})
        return self.config

    def run(
        self,
        model: Model,
        collate: Collate,
        evaluate: Callable[[nn.Module], dict[str, float]],
        run: RunDirectory,
        tracker: Tracker,
        save_extras: SaveExtras,
        *,
        metric: str,
        larger_is_better: bool,
        seconds_used: float,
        held_out: np.ndarray,
        sources: Sequence[str],
        tokenizer_sha256: str,
        data_fingerprint: str,
        loop: Callable[..., dict[str, float]] = train,
        **options: Any,
    ) -> None:
        """Train `model` with `loop` and write run.model.

        held_out: tokens of each validation example. sources: the origin of each training example. options: further
        arguments of mini_llm.engine.loop.train, which describes the others.
        """
        config, mean_length = self.config, float(self.lengths.mean())
        loop(
            model,
            lambda step: [collate(rows) for rows in self.batches.batch(step)],
            evaluate,
            config,
            self.accelerator,
            run,
            tracker,
            save_extras,
            metric=f"val/{metric}",
            larger_is_better=larger_is_better,
            seconds_used=seconds_used,
            evaluation_in_steps=held_out.sum() / (config.batch_size * mean_length),
            flops_per_token=lambda head_share: flops_per_token(model.config, round(mean_length), 0.0),
            documents=lambda step, rank, _: [sources[i] for rows in self.batches_of(rank).batch(step) for i in rows],
            metadata={
                "tokenizer_sha256": tokenizer_sha256,
                "data_fingerprint": data_fingerprint,
                "global_batch_size": config.batch_size,
            },
            **options,
        )

    @torch.no_grad()
    def predict(
        self,
        model: nn.Module,
        lengths: np.ndarray,
        collate: Collate,
        read: Callable[[Tensor, Tensor, np.ndarray], T],
    ) -> list[tuple[np.ndarray, T]]:
        """Return (rows, read(logits, labels, rows)) for batches of examples with `lengths`, on every rank alike.

        The ranks share the batches. All run the same number of forward passes, because ZeRO-3 gathers weights in each;
        a repeated batch counts once.
        """
        accelerator = self.accelerator
        batches = ordered_batches(lengths, self.config.evaluation_batch_size)
        found: list[tuple[np.ndarray, T]] = []
        model.eval()
        for start in range(0, len(batches), accelerator.num_processes):
            mine = start + accelerator.process_index
            rows = batches[min(mine, len(batches) - 1)]
            batch = to_device(collate(rows), accelerator.device)
            labels = batch.pop("labels")
            with accelerator.autocast():
                logits = model(**batch)
            if mine < len(batches):
                found.append((rows, read(logits, labels, rows)))
        model.train()
        return gather_object(found) if accelerator.num_processes > 1 else found


def without_choice_by_few(config: FinetuneConfig, held_out: int) -> FinetuneConfig:
    """Take the last weights where fewer than FEW_HELD_OUT texts are held out: the best of several evaluations on a
    few texts is luck."""
    return config if held_out >= FEW_HELD_OUT else config.model_copy(update={"load_best": False, "patience": None})


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return N / (classes * count), so that every class has the same total weight (King and Zeng 2001)."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)
