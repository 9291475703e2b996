"""The scaling law of Hoffmann et al. 2022 (approach 3), fitted to the losses of finished runs.

    loss(N, D) = E + A / N^alpha + B / D^beta

N: parameters, D: training tokens. The fit minimizes the Huber loss (delta 1e-3) of the residuals of log loss, from
several starts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from mini_llm.engine.errors import ConfigError

from .law import Backtest, Fit, Law, Vector, inflated

DELTA = 1e-3
FEWEST_RUNS, FEWEST_VALUES = 7, 3
RESAMPLES = 200
# Bounds of (a, b, e, alpha, beta); a and b are the logarithms of the two terms at the mean of log N and log D.
BOUNDS = [(-15.0, 5.0), (-15.0, 5.0), (-10.0, 5.0), (0.01, 3.0), (0.01, 3.0)]
STARTS = [
    (a, b, e, alpha, beta)
    for a in (-2.0, 0.0)
    for b in (-2.0, 0.0)
    for e in (-1.0, 0.5)
    for alpha, beta in ((0.3, 0.3), (0.3, 1.0), (1.0, 0.3))
]


def fit_law(
    parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], resamples: int = RESAMPLES
) -> Fit:
    """Fit the law to runs; intervals are those of a residual bootstrap, and for predictions of a backtest.

    Raises ConfigError for too few runs, sizes or token counts, and for losses that are not positive and finite.
    """
    x, y, loss = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
    _check(x, y, loss)
    target = np.log(loss)
    point = _fit(x, y, target, STARTS)
    law = _law(point, x, y)
    fitted = np.log(law.loss(x, y))
    residuals = target - fitted
    generator = np.random.default_rng(0)
    pool = inflated(residuals)
    # Each resample starts from the fit of the real losses.
    drawn = [fitted + generator.choice(pool, len(target)) for _ in range(resamples)]
    resampled = [_law(_fit(x, y, again, [point]), x, y) for again in drawn]
    return Fit(law, resampled, residuals, _backtest(x, y, target, point))


def _backtest(x: Vector, y: Vector, target: Vector, point: Vector) -> Backtest | None:
    """The errors of a fit without the longest run of each size; None where too few runs are left."""
    longest = np.array([tokens == y[x == size].max() for size, tokens in zip(x, y, strict=True)])
    shorter = ~longest
    try:
        _check(x[shorter], y[shorter], np.exp(target[shorter]))
    except ConfigError:
        return None
    law = _law(_fit(x[shorter], y[shorter], target[shorter], [point, *STARTS]), x[shorter], y[shorter])
    errors = target[longest] - np.log(law.loss(x[longest], y[longest]))
    before = np.array([y[shorter & (x == size)].max(initial=1.0) for size in x[longest]])
    distance = float(np.log(y[longest] / before).mean())
    return Backtest(float(np.sqrt(np.square(errors).mean())), distance, float((x * y).max()))


def _check(x: Vector, y: Vector, loss: Vector) -> None:
    if not (np.isfinite(loss) & (loss > 0)).all():
        raise ConfigError("a scaling law needs positive, finite losses: remove the run that diverged")
    sizes, counts = len(np.unique(x)), len(np.unique(y))
    if len(loss) < FEWEST_RUNS or min(sizes, counts) < FEWEST_VALUES:
        raise ConfigError(
            f"{len(loss)} runs of {sizes} sizes and {counts} token counts do not determine the five constants of the "
            f"law: it needs at least {FEWEST_RUNS} runs, {FEWEST_VALUES} sizes and {FEWEST_VALUES} token counts. Give "
            "more --widths, or a longer --budget"
        )


def _terms(theta: Vector, far_x: Vector, far_y: Vector) -> Vector:
    """The logarithms of the three terms, (3, runs). far: distances from the mean of log N and log D."""
    a, b, e, alpha, beta = theta
    return np.stack([a - alpha * far_x, b - beta * far_y, np.full(len(far_x), e)])


def _fit(x: Vector, y: Vector, target: Vector, starts: Sequence[ArrayLike]) -> Vector:
    """The (a, b, e, alpha, beta) with the smallest Huber loss."""
    far = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()

    def objective(theta: Vector) -> tuple[float, Vector]:
        """The Huber loss in units of DELTA squared, and its gradient."""
        terms = _terms(theta, *far)
        predicted = np.logaddexp.reduce(terms)
        scaled = (predicted - target) / DELTA
        loss = np.where(np.abs(scaled) <= 1, scaled**2 / 2, np.abs(scaled) - 0.5).sum()
        share = np.exp(terms - predicted) * np.clip(scaled, -1, 1) / DELTA
        gradient = [*share.sum(axis=1), -share[0] @ far[0], -share[1] @ far[1]]
        return float(loss), np.array(gradient)

    found = [
        minimize(objective, start, jac=True, method="L-BFGS-B", bounds=BOUNDS, options={"maxiter": 200})
        for start in starts
    ]
    return min(found, key=lambda result: result.fun).x


def _law(theta: Vector, x: Vector, y: Vector) -> Law:
    a, b, e, alpha, beta = (float(value) for value in theta)
    A, B = np.exp(a + alpha * np.log(x).mean()), np.exp(b + beta * np.log(y).mean())
    return Law(float(np.exp(e)), float(A), float(B), alpha, beta)
