"""Rounding of weights to few bits: groups of consecutive weights of a row share a scale.

Shapes: O rows (outputs), I columns (inputs), G = I / group scales a row.
"""

import torch
from torch import Tensor

GROUP = 64


def quantize(weight: Tensor, group: int = GROUP, bits: int = 8) -> tuple[Tensor, Tensor]:
    """int8 values (O, I) and fp32 scales (O, G) of weight (O, I).

    The largest magnitude of each group becomes 2^(bits - 1) - 1 or its negative.
    """
    grouped = weight.float().unflatten(-1, (-1, group))
    most = 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / most
    return (grouped / scale).round().to(torch.int8).flatten(-2), scale[..., 0]


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """fp32 weights (O, I) from int8 values (O, I) and scales (O, G)."""
    return (values.unflatten(-1, (scale.size(-1), -1)).float() * scale[..., None].float()).flatten(-2)


def group_size(columns: int) -> int | None:
    """How many weights of a row share a scale; None if no size divides the row, which then is not quantized."""
    return next((g for g in (GROUP, 32, 16) if columns % g == 0), None)
