"""Loss sums: the one loss line, and evaluation over a whole set, the same number on any batch size or rank count."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE_INDEX = -100
# Beside tensors, flags that the model's forward takes.
Batch = dict[str, Any]


def cross_entropy_sum(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Summed cross-entropy in nats of logits (..., V) against labels (...); labels of -100 count nothing."""
    return F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), weight=weight, ignore_index=IGNORE_INDEX, reduction="sum"
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


@torch.no_grad()
def evaluate_loss(model: nn.Module, batches: Sequence[Batch], accelerator: Accelerator) -> dict[str, float]:
    """Over all `batches`, shared out over the ranks: loss (nats per label), accuracy, labels counted.

    Every batch counts once. Ranks make equally many forward passes, since ZeRO-3 gathers weights in each.
    """
    ranks, rank = accelerator.num_processes, accelerator.process_index
    sums = torch.zeros(3, dtype=torch.float64)
    model.eval()
    for start in range(0, len(batches), ranks):
        mine = start + rank
        batch = to_device(dict(batches[min(mine, len(batches) - 1)]), accelerator.device)
        labels = batch.pop("labels")
        if mine >= len(batches):
            labels = torch.full_like(labels, IGNORE_INDEX)
        with accelerator.autocast():
            logits = model(**batch)
        counted = labels != IGNORE_INDEX
        sums += torch.stack(
            [
                cross_entropy_sum(logits, labels).double(),
                ((logits.argmax(-1) == labels) & counted).sum().double(),
                counted.sum().double(),
            ]
        ).cpu()
    model.train()
    loss, correct, count = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
    return {"loss": loss / max(count, 1), "accuracy": correct / max(count, 1), "count": count}
