"""The one loss line: summed cross-entropy, of whole logits or read off hidden states a piece at a time.

Logits of all positions are the largest tensors of a step where the vocabulary is large against the width. A model that
has a vocabulary head takes `read` in its forward: what is done with (predict, hidden) instead of predicting everything.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mini_llm.engine.batch import IGNORE_INDEX, Batch
from mini_llm.engine.kernels.cross_entropy import losses_and_hits
from mini_llm.engine.kernels.load import NUMBERS, has_kernels
from mini_llm.engine.kernels.weight_gradients import accumulates
from mini_llm.model import ModelConfig
from mini_llm.model.gradients import passing

Predict = Callable[[Tensor], Tensor]

# Logits of one piece; fewer rows than MIN_ROWS would make each a poor matrix product, and with fewer than
# ROWS_A_CHANNEL for each channel of the head its gradient, which each piece makes anew, would be larger than they.
PIECE = {"cpu": 2**23, "cuda": 2**27}
MIN_ROWS = 512
ROWS_A_CHANNEL = 2
# Of a scale: it comes by other roundings.
TOLERANCE = 1e-5


def cross_entropy_sum(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Summed cross-entropy in nats of logits (..., V) against labels (...); labels of -100 count nothing."""
    return F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), weight=weight, ignore_index=IGNORE_INDEX, reduction="sum"
    )


def loss_sums(
    model: nn.Module, batch: Batch, answers: list[Tensor], weight: Tensor | None = None, scale: float = 1.0
) -> list[Tensor]:
    """Summed cross-entropy of each of the model's outputs on `batch` (without labels) against its `answers`.

    `scale`: what the first is going to be multiplied by before its backward pass.
    """
    inner = getattr(model, "module", model)
    if not hasattr(inner, "predict"):
        return [cross_entropy_sum(model(**batch), answers[0], weight)]
    head = [p for name, p in inner.named_parameters(remove_duplicate=False) if not name.startswith("trunk.")]
    head = [p for p in head if p.requires_grad]
    # ZeRO-3 gathers weights around a module's own forward and backward.
    sharded = any(hasattr(p, "ds_id") for p in head)

    def read(predict: Predict, hidden: Tensor) -> Tensor:
        rows = piece_rows(inner.config, hidden.device)
        if not sharded and not _in_fp16(hidden):
            return _HeadLoss.apply(predict, rows, scale, hidden, answers[0], *head)
        losses = [
            checkpoint(lambda *pair: cross_entropy_sum(predict(pair[0]), pair[1]), *pair, use_reentrant=False)
            for pair in pieces(hidden, answers[0], rows)
        ]
        return torch.stack(losses).sum()

    first, *others = as_tuple(model(**batch, read=read))
    return [first, *(cross_entropy_sum(logits, labels) for logits, labels in zip(others, answers[1:], strict=True))]


def _in_fp16(hidden: Tensor) -> bool:
    """Whether gradients wait for the loss scale."""
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return autocast or hidden.dtype == torch.float16


def as_tuple(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a model that may have one or several."""
    return output if isinstance(output, tuple) else (output,)


def piece_rows(config: ModelConfig, device: torch.device) -> int:
    """Positions whose logits are made at a time."""
    few = max(MIN_ROWS, ROWS_A_CHANNEL * config.hidden_size)
    return max(few, PIECE.get(device.type, PIECE["cuda"]) // config.vocab_size)


def pieces(hidden: Tensor, labels: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states (..., C) and labels (...) in pieces (rows, C) and (rows,), the last one shorter."""
    return zip(hidden.flatten(0, -2).split(rows), labels.flatten().split(rows), strict=True)


def cross_entropy_and_gradient(logits: Tensor, labels: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """cross_entropy_sum of logits (N, V), and `factor` times its gradient, softmax(logits) - onehot(labels), in their
    type and, where there is a kernel for it, in their place.

    One pass over the logits makes the softmax that the gradient is to have; the loss is read off it. Both in fp32 at
    least: rounded to bf16 first, the difference from 1 of a probability near 1 would lose its digits.
    """
    if logits.dtype in NUMBERS and has_kernels(logits.device):
        logits = logits.contiguous()
        losses, _ = losses_and_hits(logits, labels, logits, factor)
        return losses.sum(), logits
    counted = labels != IGNORE_INDEX
    places = torch.arange(len(labels), device=labels.device), torch.where(counted, labels, 0)
    gradient = torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    likely = gradient[places]
    losses = -likely.log()
    if (vanished := likely < 1e-30).any():
        losses[vanished] = F.cross_entropy(logits[vanished].to(likely.dtype), places[1][vanished], reduction="none")
    gradient[places] = likely - 1
    if not counted.all():
        losses, gradient = losses.where(counted, 0.0), gradient.masked_fill_(~counted.unsqueeze(1), 0.0)
    return losses.sum(), gradient.mul_(factor).to(logits.dtype)


def cross_entropy_and_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """cross_entropy_sum of logits (..., V), and of how many labels (...) that count the logit is the largest."""
    if logits.dtype not in NUMBERS or not has_kernels(logits.device):
        hits = (logits.argmax(-1) == labels) & (labels != IGNORE_INDEX)
        return cross_entropy_sum(logits, labels).double(), hits.sum()
    losses, hits = losses_and_hits(logits.flatten(0, -2).contiguous(), labels.flatten())
    return losses.double().sum(), hits.sum()


class _HeadLoss(torch.autograd.Function):
    """cross_entropy_sum(predict(hidden), labels), with the gradients of each piece made when its logits are there.

    So nothing of (rows, V) outlives its piece, and nothing is computed twice (the idea of Hsu et al. 2024, "Liger
    Kernel"). `head`: the parameters that `predict` reads; to `.grad` of those that accumulate (mini_llm/engine/kernels/weight_gradients.py)
    it is added in the forward pass, so that the loss is then to be multiplied by `scale`.
    """

    @staticmethod
    def forward(
        ctx: Any, predict: Predict, rows: int, scale: float, hidden: Tensor, labels: Tensor, *head: Tensor
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        ctx.hidden, ctx.head = [], [None] * len(head)
        for part, answers in pieces(hidden, labels, rows):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                logits = predict(part)
            loss, of_logits = cross_entropy_and_gradient(logits.detach(), answers, scale)
            gradient, *gradients = torch.autograd.grad(passing(logits, of_logits), (part, *head), allow_unused=True)
            # What the next piece needs room for is not to be held by a name of this one.
            del logits, of_logits
            total += loss
            ctx.hidden.append(gradient)
            for i, found in enumerate(gradients):
                if found is not None:
                    ctx.head[i] = found if ctx.head[i] is None else ctx.head[i].add_(found)
            del found, gradients
        ctx.shape, ctx.scale, ctx.bound = hidden.shape, scale, any(map(accumulates, head))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # NaN where the step is to be left out.
        scale = scale / ctx.scale
        if ctx.bound and (scale - 1).abs() > TOLERANCE:
            raise RuntimeError(f"the loss was multiplied by {scale:.6g} times the scale that its gradients have")
        hidden = torch.cat(ctx.hidden).view(ctx.shape).mul_(scale)
        head = [None if gradient is None else gradient.mul_(scale) for gradient in ctx.head]
        del ctx.hidden, ctx.head
        return None, None, None, hidden, None, *head
