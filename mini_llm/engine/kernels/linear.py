"""Linear layers for training on a CPU that keep less for the backward pass.

Autocast casts a weight once and keeps the copy until the backward pass has read it: 2 bytes a parameter at the moment
when most is alive. Here a large one is cast again, and what a gate lets through is made again: a pass over a weight or
an activation is nothing beside a product of many rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.engine.kernels.pointwise import gate_gradients, open_gate
from mini_llm.engine.kernels.weight_gradients import weight_gradient

# Elements below which a weight is left to autocast: 3 x 64 would train 5 % slower.
SMALL = 2**16
# Elements of a weight that is cast again. 6 x 384 without it: 0.8 % faster, and not larger.
LARGE = 2**19


class Linear(torch.autograd.Function):
    """x W^T + b in the type of x (..., C); W (O, C) and b (O,) stay as they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, weight if weight.numel() >= LARGE else cast)
        ctx.weight = weight
        return F.linear(x, cast, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x = gradient @ weight.to(x.dtype) if ctx.needs_input_grad[0] else None
        return for_x, *_gradients(x, ctx.weight, gradient, ctx.needs_input_grad[1:])


class GatedLinear(torch.autograd.Function):
    """The same of x = silu(gate) * up (..., C)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up, weight)
        ctx.weight = weight
        return _product(open_gate(gate, up), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        opened = gradient @ weight.to(gate.dtype)
        for_both = gate_gradients(gate, up, opened)
        return *for_both, *_gradients(opened, ctx.weight, gradient, ctx.needs_input_grad[2:])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _gradients(x: Tensor, weight: Tensor, gradient: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, ...]:
    """Of weight and bias, in their type."""
    rows = gradient.flatten(0, -2)
    for_weight = weight_gradient(weight, rows, x.flatten(0, -2)) if wanted[0] else None
    return for_weight, rows.sum(0, dtype=weight.dtype) if wanted[1] else None


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What `layer` gives for x under autocast or without it."""
    if torch.compiler.is_compiling():
        return F.linear(x, layer.weight, layer.bias)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return Linear.apply(x.to(dtype), layer.weight, layer.bias)


def gated_linear(layer: nn.Linear, gate: Tensor, up: Tensor) -> Tensor:
    """What `layer` gives for silu(gate) * up."""
    return GatedLinear.apply(gate, up, layer.weight, layer.bias)
