"""Loss sums: the one loss line, and evaluation over a whole set, the same number on any batch size or rank count."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE_INDEX = -100
# Labels that a batch may carry, one kind for each output of the model.
LABELS = ("labels", "next_sentence_label")
# Beside tensors, flags that the model's forward takes.
Batch = dict[str, Any]


def cross_entropy_sum(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Summed cross-entropy in nats of logits (..., V) against labels (...); labels of -100 count nothing."""
    return F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), weight=weight, ignore_index=IGNORE_INDEX, reduction="sum"
    )


def pop_labels(batch: Batch) -> list[Tensor]:
    """Take the labels out of `batch`."""
    return [batch.pop(name) for name in LABELS if name in batch]


def run_model(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """The model's outputs, each of logits."""
    logits = model(**batch)
    return logits if isinstance(logits, tuple) else (logits,)


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


@torch.no_grad()
def evaluate_loss(model: nn.Module, batches: Sequence[Batch], accelerator: Accelerator) -> dict[str, float]:
    """Over all `batches`, shared out over the ranks: loss (nats per label), accuracy, labels counted.

    Of a model with two outputs the loss is the sum of their means; accuracy and count are those of the first, and
    `next_sentence_accuracy` that of the second. Every batch counts once. Ranks make equally many forward passes, since
    ZeRO-3 gathers weights in each.
    """
    ranks, rank = accelerator.num_processes, accelerator.process_index
    outputs = sum(name in batches[0] for name in LABELS)
    sums = torch.zeros(outputs, 3, dtype=torch.float64)
    model.eval()
    for start in range(0, len(batches), ranks):
        mine = start + rank
        batch = to_device(dict(batches[min(mine, len(batches) - 1)]), accelerator.device)
        answers = pop_labels(batch)
        if mine >= len(batches):
            answers = [torch.full_like(labels, IGNORE_INDEX) for labels in answers]
        with accelerator.autocast():
            predictions = run_model(model, batch)
        for i, (logits, labels) in enumerate(zip(predictions, answers, strict=True)):
            counted = labels != IGNORE_INDEX
            sums[i] += torch.stack(
                [
                    cross_entropy_sum(logits, labels).double(),
                    ((logits.argmax(-1) == labels) & counted).sum().double(),
                    counted.sum().double(),
                ]
            ).cpu()
    model.train()
    (loss, correct, count), *others = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
    result = {"loss": loss / max(count, 1), "accuracy": correct / max(count, 1), "count": count}
    for loss, correct, count in others:
        result["loss"] += loss / max(count, 1)
        result["next_sentence_accuracy"] = correct / max(count, 1)
    return result
