"""RMSNorm on a CPU, where torch fuses the forward pass alone: two thirds of its training time were the backward."""

from typing import Any

import torch
from torch import Tensor


def trains_on_cpu(x: Tensor) -> bool:
    """Whether CPURMSNorm is for x. bf16 keeps torch's own gradient: rounded otherwise, Muon's losses on two ranks part
    from those of one (benchmarks/parallel.py)."""
    wide = x.dtype in (torch.float32, torch.float64)
    return wide and x.device.type == "cpu" and x.requires_grad and not torch.compiler.is_compiling()


class CPURMSNorm(torch.autograd.Function):
    """F.rms_norm of x (..., C) by `weight` (C,), with the backward pass of layer_norm, which is fused.

    With a mean of zero and the reciprocal root mean square r in the place of that of the variance, layer_norm's
    gradient falls short by r * mean(gradient * weight), its own mean's share (Zhang and Sennrich 2019, section 4).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
        y, r = torch.ops.aten._fused_rms_norm(x, weight.shape, weight.to(x.dtype), eps)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        gradient, wide = gradient.contiguous(), weight.to(x.dtype)
        for_x, for_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, wide.shape, torch.zeros_like(r), r, wide, None, [True, True, False]
        )
        mean = (gradient @ wide).unsqueeze(-1) / wide.numel()
        return for_x.add_(mean * r), for_weight.to(weight.dtype), None
