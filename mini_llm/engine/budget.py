"""When to stop, evaluate and save: from a number of steps, or from a wall-time budget and the measured step time."""

import math
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import read_json, write_json
from mini_llm.engine.schedule import Schedule

if TYPE_CHECKING:
    from mini_llm.engine.settings import LoopConfig

UNKNOWN = 1 << 40
# The first look at the speed: after ten steps, or earlier when those would take a twentieth of the budget.
FIRST_LOOK = 2
ENOUGH_STEPS = 10
FIRST_LOOK_SHARE = 0.05
RECENT_STEPS = 20
SECONDS_BETWEEN_SAVES = 60.0
EVALUATIONS = 6
# Time spent on evaluating during a budget, the last evaluation apart.
EVALUATION_SHARE = 0.06
SECONDS_FOR_SAVING = 1.5


class Pace:
    """The plan of a run: the schedule with its number of steps, and the steps at which to evaluate and save.

    With a budget, the number of steps is reviewed after a few steps, when the rate begins to fall, and ever closer to
    the end. Every review is written to plan.json before it takes effect, so a resumed run repeats the plan it had.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: "LoopConfig",
        evaluation_in_steps: float,
        accelerator: Accelerator,
        spent: float = 0.0,
    ) -> None:
        """`evaluation_in_steps`: the tokens of one evaluation divided by those of one training step; `spent`: seconds
        of the budget that this launch has used already."""
        self.config = config
        self.max_steps = config.max_steps or UNKNOWN
        self.budget = config.budget_seconds
        self.accelerator = accelerator
        self.path = run.path / "plan.json"
        self.schedule = Schedule(config.schedule, self.max_steps)
        self.evaluate_every = config.evaluate_every or max(1, self.max_steps // EVALUATIONS)
        self.save_every = config.save_every or self.evaluate_every
        self.next_review = FIRST_LOOK
        self.elapsed_before = 0.0
        self._evaluation_in_steps = evaluation_in_steps
        self._evaluation_seconds: float | None = None
        self._step_seconds: deque[float] = deque(maxlen=100)
        self._started = time.monotonic() - spent
        # (step, state of the schedule) of each review: from that step on it was so.
        self.history: list[tuple[int, dict[str, Any]]] = []
        plan = broadcast(read_json(self.path) if accelerator.is_main_process else None, accelerator)
        if plan:
            self._load(plan)

    @property
    def total(self) -> int:
        return self.schedule.total

    @property
    def known_total(self) -> int | None:
        """The number of steps, or None while a budget waits for its first look at the speed."""
        return self.total if self.budget is None or self.history else None

    @property
    def elapsed(self) -> float:
        """Seconds of this and earlier launches."""
        return self.elapsed_before + time.monotonic() - self._started

    def resume(self, step: int, elapsed: float) -> None:
        """Go on before `step`, after so many seconds of earlier launches: the steps after it are computed again."""
        self.elapsed_before = elapsed
        if self.history and self.history[-1][0] > step:
            self._remember(step)
            if self.accelerator.is_main_process:
                write_json(self.path, self._state())

    def schedule_at(self, step: int) -> Schedule:
        """The schedule that `step` was or will be computed with, whatever was planned later."""
        schedule = Schedule(self.config.schedule, self.max_steps)
        for start, state in self.history:
            if start <= step:
                schedule.load_state(state)
        return schedule

    def step_took(self, seconds: float) -> None:
        self._step_seconds.append(seconds)

    def evaluation_took(self, seconds: float) -> None:
        self._evaluation_seconds = seconds

    def review(self, step: int) -> bool:
        """Before `step`: adapt the plan if it is time to. Returns whether the plan changed. Collective."""
        if step < self.next_review or step >= self.total or not self._step_seconds:
            return False
        first = self.next_review == FIRST_LOOK
        recent = sorted(list(self._step_seconds)[-RECENT_STEPS:])
        step_seconds, elapsed, evaluation = broadcast(
            (recent[len(recent) // 2], self.elapsed, self._evaluation_seconds), self.accelerator
        )
        if first and step < ENOUGH_STEPS and elapsed < FIRST_LOOK_SHARE * (self.budget or float("inf")):
            return False
        if first and self.config.save_every is None:
            self.save_every = max(1, round(SECONDS_BETWEEN_SAVES / step_seconds))
        if self.budget is not None:
            # A forward pass is a third of a training step.
            evaluation = evaluation or 0.4 * self._evaluation_in_steps * step_seconds
            self._fit_budget(step, step_seconds, self.budget - elapsed - SECONDS_FOR_SAVING, evaluation, first)
        self.next_review = self._after(step)
        self._remember(step)
        if self.accelerator.is_main_process:
            try:
                write_json(self.path, self._state())
            except OSError as error:
                print(
                    f"{self.path}: not written ({error.strerror or error}); a run that is killed will plan anew",
                    file=sys.stderr,
                )
        self.accelerator.wait_for_everyone()
        return True

    def _remember(self, step: int) -> None:
        self.history = [entry for entry in self.history if entry[0] < step] + [(step, self.schedule.state())]

    def _fit_budget(self, step: int, step_seconds: float, left: float, evaluation: float, first: bool) -> None:
        # The evaluation at the end is always made.
        left -= evaluation
        chooses = first and self.config.evaluate_every is None
        if chooses:
            # None on the way where the one at the end takes all that is left.
            count = max(0, min(EVALUATIONS - 1, int(EVALUATION_SHARE * left / evaluation)))
            total = step + int((left - count * evaluation) / step_seconds)
        else:
            total = step + int(left / (step_seconds + evaluation / self.evaluate_every))
        self.schedule.retotal(step, min(max(total, step + 1), self.max_steps))
        if chooses:
            self.evaluate_every = math.ceil(self.total / (count + 1))

    def _after(self, step: int) -> int:
        """The next step to review at: half-way to the fall of the rate, its beginning, then half-way to the end."""
        if self.budget is None:
            return UNKNOWN
        if step < self.schedule.decay_start:
            middle = (step + self.schedule.decay_start) // 2
            return middle if middle - step > ENOUGH_STEPS else self.schedule.decay_start
        left = self.total - step
        return step + left // 2 if left >= 2 else UNKNOWN

    def _state(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule.state(),
            "evaluate_every": self.evaluate_every,
            "save_every": self.save_every,
            "next_review": self.next_review,
            "history": self.history,
        }

    def _load(self, plan: dict[str, Any]) -> None:
        self.schedule.load_state(plan["schedule"])
        self.evaluate_every = int(plan["evaluate_every"])
        self.save_every = int(plan["save_every"])
        self.next_review = int(plan["next_review"])
        self.history = [(int(step), state) for step, state in plan.get("history", [])]
