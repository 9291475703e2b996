"""One optimizer step: forward, backward, update, on one process or many, with or without DeepSpeed.

A loss that is not finite on one rank makes the gradients of all ranks NaN, and the step is then left out everywhere: by
the norm of the gradient here, by DeepSpeed's own check of it under ZeRO.

The loss is the summed cross-entropy over labels != -100 divided by their number over all micro-batches and ranks;
where a model has two outputs, with labels of their own, the sum of both losses. What is learned is therefore
independent of micro-batch size, accumulation and rank count.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mini_llm.engine.batch import IGNORE_INDEX, LABELS, Batch, pop_labels, to_device
from mini_llm.engine.device import default_device, resolve_precision
from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.distributed.zero import create_sharded_state
from mini_llm.engine.kernels.install import use_kernels
from mini_llm.engine.kernels.load import has_kernels
from mini_llm.engine.kernels.weight_gradients import accumulate_in_place
from mini_llm.engine.loss import loss_sums
from mini_llm.engine.optim import make_optimizer
from mini_llm.engine.settings import RuntimeConfig
from mini_llm.model.layers import Block
from mini_llm.model.transformer import Transformer

if TYPE_CHECKING:
    from mini_llm.engine.settings import LoopConfig


@dataclass
class Training:
    """A prepared model and everything that advances it."""

    model: nn.Module
    optimizer: Any
    accelerator: Accelerator
    learning_rates: list[float]
    # Loss sums of this rank's micro-batches in the last step (micro-batches, outputs).
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def overflow_is_expected(self) -> bool:
        """Whether a loss scaler is still finding its scale: its overflows are then part of its work."""
        if self.accelerator.distributed_type == "DEEPSPEED":
            return self.model.fp16_enabled() and self.optimizer.optimizer.loss_scale > 1
        return self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() > 1


def prepare(model: nn.Module, config: "LoopConfig", accelerator: Accelerator) -> Training:
    """Optimizer, checkpointing, compilation and Accelerate's wrapping for `model`."""
    stage = zero_stage(config.runtime)
    model.train().to(accelerator.device)
    prepare_model(model, config.runtime)
    precision = resolve_precision(config.runtime.precision, accelerator.device)
    optimizer = make_optimizer(model, config.optim, stage, precision)
    if stage is None:
        optimizer.create_state()
    learning_rates = [group["lr"] for group in optimizer.param_groups]
    # The model is where it belongs. Accelerate would look for DTensors first, and import them: half a second.
    placement = [False, False] if stage is None else None
    if stage is None and accelerator.num_processes == 1 and has_kernels(accelerator.device):
        accumulate_in_place(model)
    model, optimizer = accelerator.prepare(model, optimizer, device_placement=placement)
    if stage is not None:
        create_sharded_state(optimizer)
    return Training(model, optimizer, accelerator, learning_rates)


def train_step(
    training: Training,
    micro_batches: list[Batch],
    factor: float,
    max_grad_norm: float,
    class_weights: Tensor | None = None,
) -> tuple[float, float]:
    """One optimizer step on this rank's micro-batches; returns the global mean loss and the gradient norm.

    Non-finite: the step is left out on every rank, with parameters and optimizer untouched.
    """
    accelerator, model, optimizer = training.accelerator, training.model, training.optimizer
    for group, rate in zip(optimizer.param_groups, training.learning_rates, strict=True):
        group["lr"] = rate * factor
    counts = torch.stack([_counts(batch, class_weights) for batch in micro_batches]).sum(0)
    totals = [max(total, 1e-9) for total in accelerator.reduce(counts.to(accelerator.device), "sum").tolist()]
    # Ranks average gradients, and Accelerate and DeepSpeed divide by the accumulation: undo both.
    scales = [accelerator.num_processes * len(micro_batches) / total for total in totals]
    sums = []
    norm = float("nan")
    for batch in micro_batches:
        batch = to_device(batch, accelerator.device)
        answers = pop_labels(batch)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                losses = loss_sums(model, batch, answers, class_weights, scales[0] / len(micro_batches))
            sums.append(torch.stack(losses).detach())
            loss = sum(part * scale for part, scale in zip(losses, scales, strict=True))
            accelerator.backward(loss * torch.where(loss.detach().isfinite(), 1.0, float("nan")))
            if accelerator.sync_gradients:
                norm = _clip(training, max_grad_norm or float("inf"))
                # A loss scaler skips by itself, and must see the overflow to lower its scale.
                if math.isfinite(norm) or accelerator.scaler or accelerator.distributed_type == "DEEPSPEED":
                    optimizer.step()
            optimizer.zero_grad()
    training.losses = torch.stack(sums)
    global_sums = accelerator.reduce(sum(sums).double(), "sum").tolist()
    return sum(part / total for part, total in zip(global_sums, totals, strict=True)), norm


def _clip(training: Training, largest: float) -> float:
    """The norm of the gradients, which are then at most `largest`; nan where DeepSpeed does not tell."""
    if training.accelerator.distributed_type == "DEEPSPEED":
        norm = training.accelerator.clip_grad_norm_(training.model.parameters(), largest)
        return float("nan") if norm is None else float(norm)
    # As Accelerate does it, which looks for DTensors first.
    training.accelerator.unscale_gradients()
    return float(nn.utils.clip_grad_norm_(training.model.parameters(), largest))


def _counts(batch: Batch, class_weights: Tensor | None) -> Tensor:
    """How many labels of each kind count, or what they weigh."""
    counted = [batch[name][batch[name] != IGNORE_INDEX] for name in LABELS if name in batch]
    if class_weights is not None:
        return torch.stack([class_weights.cpu()[labels].sum() for labels in counted])
    return torch.tensor([float(labels.numel()) for labels in counted])


def prepare_model(model: nn.Module, config: RuntimeConfig) -> nn.Module:
    """Apply gradient checkpointing, per-block compilation and, on a CPU, our kernels in place."""
    if has_kernels(default_device(config.device)):
        use_kernels(model, compiled=config.compile is True)
    for module in model.modules():
        if isinstance(module, Transformer):
            module.checkpoint_every = config.gradient_checkpointing
        # One block class is compiled once, whatever the depth.
        if isinstance(module, Block) and config.compile is True:
            module.compile()
    return model


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout as a function of (seed, step, rank): resume needs no saved generator state."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))
