"""One optimizer step: forward, backward, update, on one process or many, with or without DeepSpeed.

A non-finite loss on one rank makes the gradients of all ranks NaN, so that all ranks skip the step: because of the
gradient norm measured here, or under ZeRO because of DeepSpeed's own check.

The loss is the summed cross-entropy over labels != -100, divided by their number over all micro-batches and ranks. For
a model with two outputs, each with its own labels, it is the sum of both losses. The update therefore does not depend
on micro-batch size, gradient accumulation or rank count.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mini_llm.engine.batch import IGNORE_INDEX, LABELS, Batch, pop_labels, to_device
from mini_llm.engine.device import default_device, resolve_precision
from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.distributed.zero import create_sharded_state
from mini_llm.engine.kernels.inductor import use_private_cache
from mini_llm.engine.kernels.install import use_kernels
from mini_llm.engine.kernels.load import has_kernels
from mini_llm.engine.loss import Objective, loss_sums
from mini_llm.engine.optim import make_optimizer
from mini_llm.engine.settings import LoopConfig, RuntimeConfig
from mini_llm.model.layers import DecoderLayer, EncoderLayer
from mini_llm.model.transformer import Transformer


@dataclass
class TrainContext:
    """A prepared model, its optimizer and what a step needs beside them."""

    model: nn.Module
    optimizer: Any
    accelerator: Accelerator
    learning_rates: list[float]
    # Loss sums (micro-batches, outputs) of this rank in the last step.
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))
    # None: cross-entropy.
    objective: Objective | None = None
    # Positions whose logits are computed at a time; None: by rule.
    logit_rows: int | None = None

    @property
    def overflow_is_expected(self) -> bool:
        """Whether a loss scaler can still lower its scale; until it cannot, overflows are part of its search."""
        if self.accelerator.distributed_type == "DEEPSPEED":
            engine: Any = self.model
            return engine.fp16_enabled() and self.optimizer.optimizer.loss_scale > 1
        return self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() > 1


def prepare(model: nn.Module, config: LoopConfig, accelerator: Accelerator) -> TrainContext:
    """Create the optimizer and set up gradient checkpointing, compilation and Accelerate's wrappers for `model`."""
    stage = zero_stage(config.runtime)
    model.train().to(accelerator.device)
    prepare_model(model, config.runtime)
    precision = resolve_precision(config.runtime.precision, accelerator.device)
    optimizer = make_optimizer(model, config.optim, stage, precision)
    if stage is None:
        optimizer.create_state()
    learning_rates = [group["lr"] for group in optimizer.param_groups]
    # The model is on its device already. Accelerate would first import DTensor, half a second, to look for some.
    placement = [False, False] if stage is None else None
    model, optimizer = accelerator.prepare(model, optimizer, device_placement=placement)
    if stage is not None:
        create_sharded_state(optimizer)
    return TrainContext(model, optimizer, accelerator, learning_rates, logit_rows=config.runtime.logit_rows)


def train_step(
    context: TrainContext,
    micro_batches: list[Batch],
    factor: float,
    max_grad_norm: float,
    class_weights: Tensor | None = None,
) -> tuple[float, float]:
    """One optimizer step on this rank's micro-batches; returns the global mean loss and the gradient norm.

    `factor` multiplies the peak learning rates. `class_weights` (V,) weight the labels. If loss or norm is non-finite,
    every rank skips the step and leaves parameters and optimizer state as they were.
    """
    accelerator, model, optimizer = context.accelerator, context.model, context.optimizer
    for group, rate in zip(optimizer.param_groups, context.learning_rates, strict=True):
        group["lr"] = rate * factor
    objective = context.objective
    counts = torch.stack([_counts(batch, class_weights, objective) for batch in micro_batches]).sum(0)
    totals = [max(total, 1e-9) for total in accelerator.reduce(counts.to(accelerator.device), "sum").tolist()]
    # Ranks average their gradients, and Accelerate and DeepSpeed divide by the accumulation steps: undo both.
    scales = [accelerator.num_processes * len(micro_batches) / total for total in totals]
    sums = []
    norm = float("nan")
    for batch in micro_batches:
        batch = to_device(batch, accelerator.device)
        labels = pop_labels(batch)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                if objective is None:
                    losses = loss_sums(model, batch, labels, class_weights, context.logit_rows)
                else:
                    losses = [objective.loss_sum(model(**batch).float(), labels[0])]
            sums.append(torch.stack(losses).detach())
            loss = sum(part * scale for part, scale in zip(losses, scales, strict=True))
            accelerator.backward(loss * torch.where(loss.detach().isfinite(), 1.0, float("nan")))
            if accelerator.sync_gradients:
                norm = _clip(context, max_grad_norm or float("inf"))
                # A loss scaler skips the step itself; it must see the overflow to lower its scale.
                if math.isfinite(norm) or accelerator.scaler or accelerator.distributed_type == "DEEPSPEED":
                    optimizer.step()
            optimizer.zero_grad()
    context.losses = torch.stack(sums)
    global_sums = accelerator.reduce(sum(sums[1:], sums[0]).double(), "sum").tolist()
    return sum(part / total for part, total in zip(global_sums, totals, strict=True)), norm


def _clip(context: TrainContext, max_norm: float) -> float:
    """Clip the gradients to `max_norm` and return their norm before; nan where DeepSpeed does not report it."""
    accelerator, parameters = context.accelerator, context.model.parameters()
    if accelerator.distributed_type == "DEEPSPEED":
        norm = accelerator.clip_grad_norm_(parameters, max_norm)
        return float("nan") if norm is None else float(norm)
    # What Accelerate's clip_grad_norm_ does, without its import of DTensor.
    accelerator.unscale_gradients()
    return float(nn.utils.clip_grad_norm_(parameters, max_norm))


def _counts(batch: Batch, class_weights: Tensor | None, objective: Objective | None) -> Tensor:
    """The number of counted labels of each output, or the sum of their class weights: (outputs,)."""
    if objective is not None:
        return torch.tensor([float(objective.count(batch["labels"]))])
    if batch["labels"].is_floating_point():  # target distributions (rows, classes), each of which sums to 1
        weights = torch.ones(batch["labels"].size(1)) if class_weights is None else class_weights.cpu()
        return (batch["labels"] @ weights).sum(0, keepdim=True)
    counted = [batch[name][batch[name] != IGNORE_INDEX] for name in LABELS if name in batch]
    if class_weights is not None:
        return torch.stack([class_weights.cpu()[labels].sum() for labels in counted])
    return torch.tensor([float(labels.numel()) for labels in counted])


def prepare_model(model: nn.Module, config: RuntimeConfig) -> nn.Module:
    """Set up gradient checkpointing, compilation layer by layer and, on a CPU, the kernels of `model`, in place."""
    if has_kernels(default_device(config.device)):
        use_kernels(model, config.attention)
    if config.compile is True:
        use_private_cache()
    for module in model.modules():
        if isinstance(module, Transformer):
            module.checkpoint_every = config.gradient_checkpointing
        # A layer class is compiled once, whatever the depth.
        if isinstance(module, EncoderLayer | DecoderLayer) and config.compile is True:
            module.compile()
    return model


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout as a function of (seed, step, rank): a resumed run needs no saved generator state."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))
