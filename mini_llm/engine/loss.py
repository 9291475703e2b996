"""The training loss: summed cross-entropy, of whole logits or chunk by chunk from hidden states.

Where the vocabulary is large against the width, the logits of all positions are the largest tensors of a step. A model
with a vocabulary head therefore takes `read` in its forward: a function of (predict, hidden) that it calls instead of
predict(hidden).

Shapes: N positions, C hidden_size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mini_llm.engine.batch import IGNORE_INDEX, Batch
from mini_llm.engine.distributed.zero import unwrap
from mini_llm.model import ModelConfig
from mini_llm.model.gradients import passing
from mini_llm.model.operations import Operations

Predict = Callable[[Tensor], Tensor]


class Objective(Protocol):
    """A training loss other than cross-entropy, of the logits and the labels of one batch."""

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss summed over the labels."""
        ...

    def count(self, labels: Tensor) -> float:
        """How many labels count, by which a step divides the sum."""
        ...


# Logits per chunk, by device.
CHUNK = {"cpu": 2**23, "cuda": 2**27}
# Rows per chunk: with fewer, each is an inefficient matrix product.
MIN_ROWS = 512
# Rows per chunk and channel: with fewer, the gradient of the head, which each chunk computes anew, exceeds its logits.
ROWS_PER_CHANNEL = 2


def cross_entropy_sum(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Summed cross-entropy in nats of logits (..., V) against labels (...), of which -100 counts nothing.

    Floating-point labels (..., V) are target distributions (soft labels). `weight` (V,) weights the classes.
    """
    if labels.is_floating_point():
        return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(0, -2), weight=weight, reduction="sum")
    return F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), weight=weight, ignore_index=IGNORE_INDEX, reduction="sum"
    )


def loss_sums(
    model: nn.Module,
    batch: Batch,
    labels: list[Tensor],
    weight: Tensor | None = None,
    logit_rows: int | None = None,
) -> list[Tensor]:
    """Summed cross-entropy of each output of the model on `batch`, which holds no labels, against its `labels`.

    logit_rows: positions whose logits are computed at a time; None: chunk_rows.
    """
    inner = unwrap(model)
    if not hasattr(inner, "predict"):
        return [cross_entropy_sum(model(**batch), labels[0], weight)]
    head = [p for name, p in inner.named_parameters(remove_duplicate=False) if not name.startswith("trunk.")]
    head = [p for p in head if p.requires_grad]
    # ZeRO-3 gathers a weight only around the forward and backward of its own module.
    sharded = any(hasattr(p, "ds_id") for p in head)

    def read(predict: Predict, hidden: Tensor) -> Tensor:
        rows = logit_rows or chunk_rows(inner.config, hidden.device)
        if not sharded and not _in_fp16(hidden):
            return FusedLinearCrossEntropy.apply(predict, inner.ops, rows, hidden, labels[0], *head)
        losses = [
            checkpoint(lambda *pair: cross_entropy_sum(predict(pair[0]), pair[1]), *pair, use_reentrant=False)
            for pair in chunks(hidden, labels[0], rows)
        ]
        return torch.stack(losses).sum()

    first, *others = as_tuple(model(**batch, read=read))
    return [first, *(cross_entropy_sum(*pair) for pair in zip(others, labels[1:], strict=True))]


def _in_fp16(hidden: Tensor) -> bool:
    """Whether gradients would underflow without the loss scale, which the forward pass does not know."""
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return autocast or hidden.dtype == torch.float16


def as_tuple(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a model that may return one tensor or several."""
    return output if isinstance(output, tuple) else (output,)


def chunk_rows(config: ModelConfig, device: torch.device) -> int:
    """How many positions have their logits computed at a time."""
    least = max(MIN_ROWS, ROWS_PER_CHANNEL * config.hidden_size)
    return max(least, CHUNK.get(device.type, CHUNK["cuda"]) // config.vocab_size)


def chunks(hidden: Tensor, labels: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states (..., C) and labels (...) in chunks (rows, C) and (rows,), the last one shorter."""
    return zip(hidden.flatten(0, -2).split(rows), labels.flatten().split(rows), strict=True)


class FusedLinearCrossEntropy(torch.autograd.Function):
    """cross_entropy_sum(predict(hidden), labels), with its gradients computed in the forward pass, chunk by chunk.

    No tensor of (rows, V) outlives its chunk, and nothing is computed twice (Hsu et al. 2024, "Liger Kernel"). `head`
    are the parameters that `predict` reads.
    """

    @staticmethod
    def forward(
        ctx: Any, predict: Predict, ops: Operations, rows: int, hidden: Tensor, labels: Tensor, *head: Tensor
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        head_gradients: list[Tensor | None] = [None] * len(head)
        ctx.hidden, ctx.head = [], head_gradients
        for chunk, chunk_labels in chunks(hidden, labels, rows):
            with torch.enable_grad():
                chunk = chunk.detach().requires_grad_()  # rows C
                logits = predict(chunk)  # rows V
            loss, logits_gradient = ops.cross_entropy_and_gradient(logits.detach(), chunk_labels)
            gradient, *gradients = torch.autograd.grad(
                passing(logits, logits_gradient), (chunk, *head), allow_unused=True
            )
            # Free the logits before the next chunk needs the memory.
            del logits, logits_gradient
            total += loss
            ctx.hidden.append(gradient)
            for i, part in enumerate(gradients):
                if part is not None:
                    earlier = head_gradients[i]
                    head_gradients[i] = part if earlier is None else earlier.add_(part)
            del part, gradients
        ctx.shape = hidden.shape
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden = torch.cat(ctx.hidden).view(ctx.shape).mul_(scale)
        head = [None if gradient is None else gradient.mul_(scale) for gradient in ctx.head]
        del ctx.hidden, ctx.head
        return None, None, None, hidden, None, *head
