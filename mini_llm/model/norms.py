"""Normalization over the last dimension.

A norm with `cast` feeds matrix products only, and returns its result in the type in which autocast computes them: cast
once here, not once by every product that reads it.
"""

import torch
from torch import Tensor, nn

from mini_llm.model.config import ModelConfig
from mini_llm.model.operations import PYTORCH, Operations, product_dtype


class RMSNorm(nn.RMSNorm):
    """Root mean square norm (Zhang and Sennrich 2019) that keeps the type of its input, fp32 weights or not."""

    ops: Operations = PYTORCH

    def __init__(self, size: int, eps: float, cast: bool = False, dtype: torch.dtype | None = None) -> None:
        super().__init__(size, eps=eps, dtype=dtype)
        self.cast = cast

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps, product_dtype(x) if self.cast else x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float, bias: bool, cast: bool = False) -> None:
        super().__init__(size, eps=eps, bias=bias)
        self.cast = cast

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y.to(product_dtype(input)) if self.cast else y


class NoNorm(nn.Module):
    """Takes the place of a norm with `cast` that the architecture leaves out."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(product_dtype(x))


def make_norm(config: ModelConfig, size: int, cast: bool = False) -> nn.Module:
    """The norm of an architecture over `size` channels."""
    if config.norm == "rmsnorm":
        return RMSNorm(size, config.norm_eps, cast)
    return LayerNorm(size, config.norm_eps, config.norm_bias, cast)
