"""Evaluation over a whole set: the same number on any batch size or rank count."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mini_llm.engine.batch import IGNORE_INDEX, LABELS, Batch, pop_labels, to_device
from mini_llm.engine.loss import Predict, as_tuple, cross_entropy_and_hits, piece_rows, pieces


def score_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of logits (..., V), how many are right, how many labels (...) count: (3,), fp64."""
    loss, hits = cross_entropy_and_hits(logits, labels)
    return torch.stack([loss, hits.double(), (labels != IGNORE_INDEX).sum().double()])


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
    config = getattr(model, "module", model).config
    model.eval()
    for start in range(0, len(batches), ranks):
        mine = start + rank
        batch = to_device(dict(batches[min(mine, len(batches) - 1)]), accelerator.device)
        answers = pop_labels(batch)
        if mine >= len(batches):
            answers = [torch.full_like(labels, IGNORE_INDEX) for labels in answers]

        def read(predict: Predict, hidden: Tensor, labels: Tensor = answers[0]) -> Tensor:
            rows = piece_rows(config, hidden.device)
            return torch.stack([score_sums(predict(h), part) for h, part in pieces(hidden, labels, rows)]).sum(0)

        with accelerator.autocast():
            first, *others = as_tuple(model(**batch, read=read))
        sums[0] += first.cpu()
        for i, (logits, labels) in enumerate(zip(others, answers[1:], strict=True), 1):
            sums[i] += score_sums(logits, labels).cpu()
    model.train()
    (loss, correct, count), *others = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
    result = {"loss": loss / max(count, 1), "accuracy": correct / max(count, 1), "count": count}
    for loss, correct, count in others:
        result["loss"] += loss / max(count, 1)
        result["next_sentence_accuracy"] = correct / max(count, 1)
    return result
