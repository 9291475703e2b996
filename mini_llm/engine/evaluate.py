"""Evaluation over a whole data set: the result does not depend on batch size or rank count."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mini_llm.engine.batch import IGNORE_INDEX, LABELS, Batch, pop_labels, to_device
from mini_llm.engine.distributed.zero import unwrap
from mini_llm.engine.loss import Predict, as_tuple, chunk_rows, chunks
from mini_llm.model.operations import PYTORCH, Operations


def score_sums(logits: Tensor, labels: Tensor, ops: Operations = PYTORCH) -> Tensor:
    """(summed cross-entropy, correct predictions, counted labels) of logits (..., V) and labels (...): (3,), fp64."""
    loss, hits = ops.cross_entropy_and_hits(logits, labels)
    return torch.stack([loss, hits.double(), (labels != IGNORE_INDEX).sum().double()])


@torch.no_grad()
def evaluate_loss(model: nn.Module, batches: Sequence[Batch], accelerator: Accelerator) -> dict[str, float]:
    """Loss (nats per label), accuracy and label count over all `batches`, which the ranks share.

    For a model with two outputs, the loss is the sum of both mean losses; accuracy and count are those of the first
    output, `next_sentence_accuracy` is that of the second. Every batch counts once. All ranks make the same number of
    forward passes, because ZeRO-3 gathers weights in each.
    """
    ranks, rank = accelerator.num_processes, accelerator.process_index
    outputs = sum(name in batches[0] for name in LABELS)
    sums = torch.zeros(outputs, 3, dtype=torch.float64)
    inner = unwrap(model)
    model.eval()
    for start in range(0, len(batches), ranks):
        mine = start + rank
        batch = to_device(dict(batches[min(mine, len(batches) - 1)]), accelerator.device)
        labels = pop_labels(batch)
        if mine >= len(batches):
            # A repeated batch, only for the forward pass: none of its labels counts.
            labels = [torch.full_like(part, IGNORE_INDEX) for part in labels]

        def read(predict: Predict, hidden: Tensor, labels: Tensor = labels[0]) -> Tensor:
            pairs = chunks(hidden, labels, chunk_rows(inner.config, hidden.device))
            return torch.stack([score_sums(predict(chunk), part, inner.ops) for chunk, part in pairs]).sum(0)

        with accelerator.autocast():
            first, *others = as_tuple(model(**batch, read=read))
        sums[0] += first.cpu()
        for i, (logits, part) in enumerate(zip(others, labels[1:], strict=True), 1):
            sums[i] += score_sums(logits, part, inner.ops).cpu()
    model.train()
    (loss, correct, count), *others = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
    result = {"loss": loss / max(count, 1), "accuracy": correct / max(count, 1), "count": count}
    for loss, correct, count in others:
        result["loss"] += loss / max(count, 1)
        result["next_sentence_accuracy"] = correct / max(count, 1)
    return result
