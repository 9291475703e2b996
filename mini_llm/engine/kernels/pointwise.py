"""RMSNorm and gated activation on a CPU, each in one pass over memory, for training: cpp/pointwise.h.

torch.compile fuses such operations too; these kernels are for runs that are too short to compile.
"""

from typing import Any

import torch
from torch import Tensor

from mini_llm.engine.kernels.load import NUMBERS, kernels

# Rows per partial sum of the gradient of a norm's weight: the total does not depend on the number of threads.
SHARE = 64


def open_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up of two contiguous tensors of the same shape and type, fp32 or bf16."""
    result = torch.empty_like(gate)
    kernels().gate(gate.numel(), *_places(gate, up, result), *_settings(gate))
    return result


def gate_gradients(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up from the contiguous `gradient` of open_gate(gate, up), which that result overwrites."""
    gradients = torch.empty_like(gate), torch.empty_like(up)
    kernels().gate_gradients(gate.numel(), *_places(gate, up, gradient, *gradients), *_settings(gate))
    return gradients


class Norm(torch.autograd.Function):
    """RMSNorm of fp32 x (..., C) with `weight` (C,), returned as `dtype`: fp32 or bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, wide = x.contiguous(), weight.float()
        result = torch.empty(x.shape, dtype=dtype)
        root = torch.empty(x.shape[:-1])
        kernels().norm(root.numel(), x.size(-1), *_places(x, wide), eps, *_places(result, root), *_settings(result))
        ctx.save_for_backward(x, weight, root)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, root = ctx.saved_tensors
        gradient, wide, x_gradient = gradient.contiguous(), weight.float(), torch.empty_like(x)
        partial_sums = torch.zeros(-(-root.numel() // SHARE), x.size(-1))
        places = _places(x, wide, root, gradient, x_gradient, partial_sums)
        kernels().norm_gradients(root.numel(), SHARE, x.size(-1), *places, *_settings(gradient))
        return x_gradient, partial_sums.sum(0).to(weight.dtype), None, None


def _places(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _settings(tensor: Tensor) -> tuple[bool, int]:
    """(is bf16, threads). Raises TypeError for a type that the C++ source would misread."""
    if tensor.dtype not in NUMBERS:
        raise TypeError(f"the CPU kernels support fp32 and bf16, not {tensor.dtype}")
    return tensor.dtype == torch.bfloat16, torch.get_num_threads()
