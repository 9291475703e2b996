"""Position embeddings. T query positions, S key positions, C hidden_size, D head_dim."""

import math
from typing import Any

import torch
from torch import Tensor


def sinusoidal_table(positions: Tensor, size: int) -> Tensor:
    """Sines, then cosines (T, size) of Vaswani et al. 2017, section 3.5: PE(pos, i) = sin(pos / 10000^(2i/size)).

    As in the authors' code, the two halves lie side by side instead of interleaved: a permutation of channels.
    """
    # Angles of long positions lose digits in fp32. MPS has no fp64.
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    frequencies = 10_000.0 ** (-torch.arange(0, size, 2, device=positions.device, dtype=wide) / size)  # C/2
    angles = torch.outer(positions.to(wide), frequencies)  # T C/2
    return torch.cat((angles.sin(), angles.cos()[:, : size // 2]), dim=-1).float()  # T C


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, scaling: dict[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, D) of rotary position embedding (Su et al. 2021); channels i and i + D/2 form a pair.

    Computed in fp32 in every forward pass. A buffer would be rounded when a module is cast to bf16.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    if scaling is not None:
        frequencies = _scale(frequencies, scaling)
    angles = torch.outer(positions.float(), frequencies)  # T D/2
    angles = torch.cat((angles, angles), dim=-1)  # T D
    return angles.cos(), angles.sin()


def _scale(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Frequencies for a longer context: all divided by a factor (Chen et al. 2023), or the low ones only (Dubey et al.
    2024)."""
    slowed = frequencies / scaling["factor"]
    if scaling["rope_type"] == "linear":
        return slowed
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return share * frequencies + (1 - share) * slowed


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate query or key heads x (B, H, T, D) by their positions."""
    cos, sin = (t.to(x.dtype) for t in table)  # T D
    first, second = x.chunk(2, dim=-1)  # two of B H T D/2
    return x * cos + torch.cat((-second, first), dim=-1) * sin  # B H T D


def relative_buckets(distance: Tensor, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Bucket numbers (T, S) of distances key - query (Raffel et al. 2020): exact when near, logarithmic when far.

    If `bidirectional`, half of the buckets are for keys ahead of the query; otherwise those keys share bucket 0.
    """
    ahead = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        ahead = (distance > 0) * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    scale = (buckets - exact) / math.log(max_distance / exact)
    far = exact + ((distance.clamp(min=1).float() / exact).log() * scale).long()
    return ahead + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))
