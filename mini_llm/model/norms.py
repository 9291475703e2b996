"""Normalisation over the last dimension."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.model.config import ModelConfig


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm that follows its input's type: under autocast a mixed pair would leave the fused kernel."""

    kernel = None  # norm and cast in one pass on a CPU (mini_llm/engine/kernels/pointwise.py)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if self.kernel and x.dtype == torch.float32 and not torch.compiler.is_compiling():
            return self.kernel(x, self.weight, self.eps, dtype or x.dtype)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(dtype or x.dtype)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016)."""
    if config.norm == "rmsnorm":
        return RMSNorm(size, eps=config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias)


def norm_for_products(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x) in the type that autocast gives to matrix products: cast once, not by every layer that reads it."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return norm(x, dtype) if isinstance(norm, RMSNorm) else norm(x).to(dtype)
