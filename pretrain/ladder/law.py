"""The scaling law loss(N, D) = E + A / N^alpha + B / D^beta, and what a fit of it predicts.

N: parameters, D: training tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import NonNegativeFloat, PositiveFloat

COVERAGE = 0.95
# Beyond four epochs repeated tokens count for less (Muennighoff et al. 2023), which the law does not know.
MOST_EPOCHS = 4.0
# The error of a backtest grows up to this many times its distance; it says nothing about farther predictions.
MOST_DISTANCE = 2.0
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """The five constants of the law."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: ArrayLike, tokens: ArrayLike) -> Vector:
        return self.E + self.A / np.asarray(parameters) ** self.alpha + self.B / np.asarray(tokens) ** self.beta

    def optimal(self, flops: ArrayLike) -> tuple[Vector, Vector]:
        """(parameters, tokens) with the lowest loss for `flops`, at 6 N D FLOPs (Hoffmann et al. 2022, equation 4)."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (np.asarray(flops) / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, np.asarray(flops) / 6 / parameters


@dataclass(frozen=True)
class Backtest:
    """How well the law extrapolates: it was fitted without the longest run of each size, and predicted those.

    error: root mean square of their errors of log loss. distance: mean log ratio of their tokens to those of the
    longest run that was fitted. compute: largest N * D of all runs.
    """

    error: NonNegativeFloat
    distance: PositiveFloat
    compute: PositiveFloat

    def deviation(self, parameters: float, tokens: float) -> float:
        """Standard deviation of log loss due to extrapolation.

        What bends away from the law grows with the square of the distance, here up to MOST_DISTANCE distances.
        """
        beyond = max(0.0, float(np.log(parameters * tokens / self.compute)))
        return self.error * min(beyond / self.distance, MOST_DISTANCE) ** 2


@dataclass(frozen=True)
class Fit:
    """The fitted law, the laws fitted to resampled losses, the residuals of log loss, and how far the law reaches."""

    law: Law
    resampled: list[Law]
    residuals: Vector
    backtest: Backtest | None = None

    def interval(self, name: str) -> tuple[float, float]:
        """The interval of a constant, such as "alpha"."""
        return _interval(np.array([getattr(law, name) for law in self.resampled]))

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """(loss, low, high) of one more run. The interval includes the scatter of single runs around the law, and the
        error of extrapolation beyond the compute of the fitted runs."""
        losses = np.array([law.loss(parameters, tokens) for law in self.resampled])
        generator = np.random.default_rng(1)
        scatter = generator.choice(inflated(self.residuals), len(losses))
        if self.backtest is not None:
            scatter += generator.normal(0, self.backtest.deviation(parameters, tokens), len(losses))
        return float(self.law.loss(parameters, tokens)), *_interval(losses * np.exp(scatter))


def inflated(residuals: Vector) -> Vector:
    """Residuals with the variance of the noise: five fitted constants have taken up a part of it."""
    count = len(residuals)
    return (residuals - residuals.mean()) * np.sqrt(count / max(1, count - 5))


def _interval(values: Vector) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
