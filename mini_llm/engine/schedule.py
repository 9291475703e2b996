"""Learning-rate schedules: a factor of the peak rate as a pure function of the step."""

import math
from itertools import pairwise
from typing import Any

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.settings import ScheduleConfig


class Schedule:
    """factor(step) for step in 0..total-1; `extend` moves the end while the rate is not yet falling, or bends the fall.

    Kept as knots (step, factor), linear in between, so that a changed plan is still a pure function of the step.
    """

    def __init__(self, config: ScheduleConfig, total: int) -> None:
        if total < 1:
            raise ConfigError(f"max_steps must be at least 1, found {total}")
        self.config = config
        self.total = total
        self.warmup = warmup = min(config.warmup_steps, total // 10)
        decay = max(1, round(config.decay_fraction * total))
        # A warm-up of n steps starts at 1/(n+1): the first step already learns.
        start = (-1, 0.0) if warmup else (0, 1.0)
        self.knots: list[tuple[int, float]] = [start, (warmup, 1.0)]
        if total - decay > warmup:
            self.knots.append((total - decay, 1.0))
        self.knots.append((total, config.min_ratio))

    def factor(self, step: int) -> float:
        if self.config.kind == "cosine":
            if step < self.warmup:
                return (step + 1) / (self.warmup + 1)
            progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
            low = self.config.min_ratio
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
        for (x0, y0), (x1, y1) in pairwise(self.knots):
            if step < x1:
                return y0 + (y1 - y0) * (step - x0) / (x1 - x0)
        return self.knots[-1][1]

    def falling(self, step: int) -> bool:
        """Whether the rate has begun to fall at `step`; a changed plan never answers otherwise for a step gone by."""
        return step >= max((x for x, y in self.knots if y == 1.0), default=self.warmup)

    @property
    def decay_start(self) -> int:
        return self.knots[-2][0]

    def retotal(self, step: int, total: int) -> None:
        """From `step` on, aim to end after `total` steps. What was before `step` keeps its rate."""
        total = max(total, step + 1)
        start = max(step, self.warmup)
        peak = self.factor(start)
        knots = [knot for knot in self.knots if knot[0] < start] + [(start, peak)]
        decay_start = total - max(1, round(self.config.decay_fraction * total))
        if peak == 1.0 and decay_start > start:
            knots.append((decay_start, 1.0))
        total = max(total, start + 1)
        self.knots = [*knots, (total, self.config.min_ratio)]
        self.total = total

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "warmup": self.warmup, "knots": self.knots}

    def load_state(self, state: dict[str, Any]) -> None:
        self.total, self.warmup = int(state["total"]), int(state["warmup"])
        self.knots = [(int(step), float(factor)) for step, factor in state["knots"]]
