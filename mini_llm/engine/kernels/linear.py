"""Linear layers for training on a CPU that keep less for the backward pass.

Autocast casts a weight once and keeps the copy until the backward pass has read it: 2 bytes per parameter at the moment
of peak memory. Here large weights are cast again in the backward pass, and the gated activation is recomputed: one pass
over a weight or an activation costs little beside a product with many rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mini_llm.engine.kernels.pointwise import gate_gradients, open_gate

# Weights with fewer elements are left to autocast: a model of 3 layers x 64 would train 5 % slower.
SMALL = 2**16
# Weights with this many elements are cast again. 6 layers x 384 without it: 0.8 % faster, no larger peak.
LARGE = 2**19


class Linear(torch.autograd.Function):
    """x W^T + b in the type of x (..., C); weight (O, C) and bias (O,) keep theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, weight if weight.numel() >= LARGE else cast)
        ctx.dtype = weight.dtype
        return F.linear(x, cast, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_gradient = gradient @ weight.to(x.dtype) if ctx.needs_input_grad[0] else None
        return x_gradient, *_parameter_gradients(x, gradient, ctx.dtype, ctx.needs_input_grad[1:])


class GatedLinear(torch.autograd.Function):
    """The same of x = silu(gate) * up (..., I), which is recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up, weight)
        bias = None if bias is None else bias.to(gate.dtype)
        return F.linear(open_gate(gate, up), weight.to(gate.dtype), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        # First the gradient of x; gate_gradients overwrites it with x itself.
        x = gradient @ weight.to(gate.dtype)
        gradients = gate_gradients(gate, up, x)
        return *gradients, *_parameter_gradients(x, gradient, weight.dtype, ctx.needs_input_grad[2:])


def _parameter_gradients(
    x: Tensor, gradient: Tensor, dtype: torch.dtype, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight (O, C) and bias (O,) as `dtype`, from the input (..., C) and the gradient (..., O)."""
    rows = gradient.flatten(0, -2)
    weight_gradient = (rows.T @ x.flatten(0, -2)).to(dtype) if wanted[0] else None
    return weight_gradient, rows.sum(0, dtype=dtype) if wanted[1] else None
