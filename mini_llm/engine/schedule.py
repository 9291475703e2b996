"""Learning-rate schedules: a factor of the peak rate as a pure function of the step."""

import math
from itertools import pairwise
from typing import Any

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.settings import ScheduleConfig


class Schedule:
    """The learning rate at `step` is the peak times factor(step), for step in 0..total-1.

    `wsd` (warm-up, stable, decay): linear warm-up, constant, then linear to `min_lr_ratio` over the last `decay_ratio`
    of the steps (Bergsma et al. 2025, "Straight to Zero"). `linear`: the decay starts right after the warm-up.
    `cosine`: warm-up, then half a cosine down to `min_lr_ratio` (Loshchilov and Hutter 2017, "SGDR").

    `wsd` and `linear` are stored as knots (step, factor) with linear interpolation between them: `retotal` moves the
    end of a running schedule by adding knots, and the factors of earlier steps stay what they were.
    """

    def __init__(self, config: ScheduleConfig, total: int) -> None:
        if total < 1:
            raise ConfigError(f"max_steps must be at least 1, found {total}")
        self.config = config
        self.total = total
        self.warmup = warmup = min(config.warmup_steps, total // 10)
        # n steps of warm-up start at 1/(n+1), so that the first step already learns.
        start = (-1, 0.0) if warmup else (0, 1.0)
        self.knots: list[tuple[int, float]] = [start, (warmup, 1.0)]
        if self._decay_start(total) > warmup:
            self.knots.append((self._decay_start(total), 1.0))
        self.knots.append((total, config.min_lr_ratio))

    def _decay_start(self, total: int) -> int:
        if self.config.kind == "linear":
            return self.warmup
        return total - max(1, round(self.config.decay_ratio * total))

    def factor(self, step: int) -> float:
        """The share of the peak learning rate at `step`."""
        if self.config.kind == "cosine":
            if step < self.warmup:
                return (step + 1) / (self.warmup + 1)
            progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
            low = self.config.min_lr_ratio
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
        for (x0, y0), (x1, y1) in pairwise(self.knots):
            if step < x1:
                return y0 + (y1 - y0) * (step - x0) / (x1 - x0)
        return self.knots[-1][1]

    def falling(self, step: int) -> bool:
        """Whether the rate has begun to fall at `step`; `retotal` does not change the answer for earlier steps."""
        return step >= max((x for x, y in self.knots if y == 1.0), default=self.warmup)

    @property
    def decay_start(self) -> int:
        """The step from which the rate falls to its end; after `retotal` during the fall, the step of that change."""
        return self.knots[-2][0]

    def retotal(self, step: int, total: int) -> None:
        """From `step` on, aim to end after `total` steps; earlier steps keep their rate.

        A run that turns out to be short ends its warm-up early, so that the rate still falls. With total <= step the
        schedule ends at once.
        """
        total = max(total, step)
        knots = [knot for knot in self.knots if knot[0] < step]
        start = max(step, min(self.warmup, total // 10))
        if total == step:
            knots.append((step, self.factor(step)))
        else:
            peak = self.factor(start)
            if start < self.warmup:
                # The rate jumps to its peak, which it would have reached at the end of the warm-up.
                knots += [(step - 1, self.factor(step - 1))] if step else []
                self.warmup, peak = start, 1.0
            knots.append((start, peak))
            decay_start = self._decay_start(total)
            if peak == 1.0 and decay_start > start:
                knots.append((decay_start, 1.0))
            knots.append((total, self.config.min_lr_ratio))
        self.knots, self.total = knots, total

    def state(self) -> dict[str, Any]:
        """Plain values that `load_state` accepts."""
        return {"total": self.total, "warmup": self.warmup, "knots": self.knots}

    def load_state(self, state: dict[str, Any]) -> None:
        self.total, self.warmup = int(state["total"]), int(state["warmup"])
        self.knots = [(int(step), float(factor)) for step, factor in state["knots"]]
