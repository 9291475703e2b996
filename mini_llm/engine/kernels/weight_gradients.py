"""Gradients added to `.grad` where they are made (gradient accumulation fusion, as in Megatron-LM), on a CPU.

autograd holds a weight's gradient until all that read the weight have given theirs, and adds their sum to that of the
micro-batches before: a table that is embedding and head has then three gradients of its size at once. Only for weights
that `accumulate_in_place` was told of: what waits for autograd's own accumulation (DDP, DeepSpeed) would miss them.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.engine.kernels.load import load_kernels

# Elements of a product that are made at a time, before they are added.
PIECE = 2**22


def accumulate_in_place(model: nn.Module) -> None:
    """Have the weights of its linear layers (mini_llm/engine/kernels/linear.py) and embeddings do so, from now on: with `backward` only,
    torch.autograd.grad finds nothing for them."""
    for parameter in model.parameters():
        parameter.accumulates = True
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.forward = partial(_Embedding.apply, module.weight)


def accumulates(weight: Tensor) -> bool:
    """Whether its gradient is added where it is made."""
    return getattr(weight, "accumulates", False)


def weight_gradient(weight: Tensor, of_output: Tensor, x: Tensor) -> Tensor | None:
    """of_output^T x, of (N, O) and (N, C), in the type of weight (O, C); None where weight.grad has it now."""
    if not accumulates(weight):
        return (of_output.T @ x).to(weight.dtype)
    if weight.grad is None and weight.numel() <= PIECE:
        weight.grad = (of_output.T @ x).to(weight.dtype)
        return None
    first = weight.grad is None
    if first:
        weight.grad = torch.empty_like(weight)
    rows = max(1, PIECE // weight.size(1))
    for part, into in zip(of_output.split(rows, 1), weight.grad.split(rows), strict=True):
        if first:
            into.copy_(part.T @ x)
        elif x.dtype == into.dtype:
            into.addmm_(part.T, x)
        else:
            _add(part.T @ x, into)
    return None


def _add(gradient: Tensor, into: Tensor) -> None:
    """into += gradient, both contiguous."""
    if (gradient.dtype, into.dtype) == (torch.bfloat16, torch.float32):
        load_kernels().add(into.numel(), gradient.data_ptr(), into.data_ptr(), torch.get_num_threads())
    else:
        into.add_(gradient)


class _Embedding(torch.autograd.Function):
    """Rows of weight (V, C) at ids (...)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.weight, ctx.ids = weight, ids
        return F.embedding(ids, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        weight = ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ctx.ids.flatten(), gradient.flatten(0, -2).to(weight.dtype))
        return None, None
