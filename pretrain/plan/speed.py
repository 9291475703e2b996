"""The speed of training steps by width of the model: measured, or assumed from the speed of matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mini_llm.engine.device import DTYPES, resolve_precision
from mini_llm.engine.flops import matmul_ceiling
from mini_llm.engine.kernels.load import has_kernels

from ..config import PretrainConfig

# Model FLOPs utilization (MFU) of small models, with PyTorch's operators and with our CPU kernels, assumed where no
# step has been measured.
EXPECTED_MFU, EXPECTED_MFU_WITH_KERNELS = 0.3, 0.4


@dataclass(frozen=True)
class Speed:
    """FLOP/s of one rank in training steps.

    points: (width, FLOP/s) by ascending width; between them the logarithms are interpolated, beyond them the speed
    stays the same. how: where they come from.
    """

    points: Sequence[tuple[int, float]]
    how: str = "measured in training steps"

    def at(self, width: int) -> float:
        """FLOP/s of a model of this width."""
        widths, speeds = zip(*self.points, strict=True)
        return float(np.exp(np.interp(np.log(width), np.log(widths), np.log(speeds))))

    def with_point(self, width: int, flops: float) -> "Speed":
        """These speeds and the one of another width."""
        return replace(self, points=sorted([*self.points, (width, flops)]))

    def in_words(self, width: int) -> tuple[str, str]:
        """The speed at this width, and where it comes from."""
        others = [f"width {other}: {flops / 1e9:,.0f}" for other, flops in self.points if len(self.points) > 1]
        return f"{self.at(width) / 1e9:,.0f} GFLOP/s", "; ".join([self.how, *others])


def assumed_speed(config: PretrainConfig, device: torch.device) -> Speed:
    """A share of the speed of matrix products, whatever the width."""
    mfu = expected_mfu(device)
    ceiling = matmul_ceiling(device, DTYPES[resolve_precision(config.runtime.precision, device)])
    return Speed([(1, mfu * ceiling)], f"assumed: {mfu:.0%} of the speed of matrix products")


def expected_mfu(device: torch.device) -> float:
    """The MFU that is assumed where no step has been measured."""
    return EXPECTED_MFU_WITH_KERNELS if has_kernels(device) else EXPECTED_MFU
