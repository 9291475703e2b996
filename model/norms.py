"""Normalisation over the last dimension."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.cpu_norm import CPURMSNorm, trains_on_cpu


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm that follows its input's type: under autocast a mixed pair would leave the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        if trains_on_cpu(x):
            return CPURMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016)."""
    if config.norm == "rmsnorm":
        return RMSNorm(size, eps=config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias)


def to_product_type(x: Tensor) -> Tensor:
    """x in the type that autocast gives to matrix products: cast once, not by every layer that reads it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
