"""RMSNorm and gated activation on a CPU in one pass each, for training: cpp/pointwise.h.

torch.compile makes passes like these by itself; these are for runs too short for it.
"""

from typing import Any

import torch
from torch import Tensor

from mini_llm.engine.kernels.load import NUMBERS, load_kernels

# Rows whose gradients of a norm's weight are summed first, so that the sum is the same whatever the threads.
SHARE = 64


def open_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up of two equal tensors in fp32 or bf16."""
    result = torch.empty_like(gate)
    load_kernels().gate(gate.numel(), *_places(gate, up, result), *_settings(gate))
    return result


def gate_gradients(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Of gate and up, from the gradient of what open_gate gives, which is contiguous and holds that afterwards."""
    found = torch.empty_like(gate), torch.empty_like(up)
    load_kernels().gate_gradients(gate.numel(), *_places(gate, up, gradient, *found), *_settings(gate))
    return found


class Norm(torch.autograd.Function):
    """RMSNorm of x (..., C) in fp32 by `weight` (C,), in the type `dtype`: fp32 or bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, wide = x.contiguous(), weight.float()
        result = torch.empty(x.shape, dtype=dtype)
        root = torch.empty(x.shape[:-1])
        load_kernels().norm(
            root.numel(), x.size(-1), *_places(x, wide), eps, *_places(result, root), *_settings(result)
        )
        ctx.save_for_backward(x, weight, root)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, root = ctx.saved_tensors
        gradient, wide, for_x = gradient.contiguous(), weight.float(), torch.empty_like(x)
        for_weight = torch.zeros(-(-root.numel() // SHARE), x.size(-1))
        places = _places(x, wide, root, gradient, for_x, for_weight)
        load_kernels().norm_gradients(root.numel(), SHARE, x.size(-1), *places, *_settings(gradient))
        return for_x, for_weight.sum(0).to(weight.dtype), None, None


def _places(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _settings(tensor: Tensor) -> tuple[bool, int]:
    """Whether it is bf16, and threads. Raises TypeError for what the source would read as another type."""
    if tensor.dtype not in NUMBERS:
        raise TypeError(f"kernels take fp32 and bf16, not {tensor.dtype}")
    return tensor.dtype == torch.bfloat16, torch.get_num_threads()
