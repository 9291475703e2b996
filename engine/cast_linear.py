"""Linear layers under autocast that keep no half-precision copy of their weight for the backward pass.

Autocast casts a weight once and keeps the copy until the backward pass has read it: 2 bytes a parameter at the moment
when most is alive. Casting again costs a pass over the weight, nothing beside a product of many rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CastLinear(torch.autograd.Function):
    """x W^T + b in the type of x (..., C); W (O, C) and b (O,) stay as they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        for_x = gradient @ weight.to(x.dtype) if of_x else None
        for_weight = (rows.T @ x.flatten(0, -2)).to(weight.dtype) if of_weight else None
        return for_x, for_weight, rows.sum(0, dtype=weight.dtype) if of_bias else None


def cast_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What `layer` gives for x under autocast or without it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or torch.compiler.is_compiling():
        return F.linear(x, layer.weight, layer.bias)
    return CastLinear.apply(x.to(torch.get_autocast_dtype(kind)), layer.weight, layer.bias)
