"""How many steps to train, and when to evaluate and save: from max_steps, or from a time budget and the step time."""

import math
import sys
import time
from collections import deque
from typing import Any

from accelerate import Accelerator

from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import read_json, write_json
from mini_llm.engine.schedule import Schedule
from mini_llm.engine.settings import LoopConfig

# max_steps when only a time budget bounds the run.
UNKNOWN = 1 << 40
# The speed is first measured after ten steps, or earlier if those would take a twentieth of the budget.
FIRST_REVIEW = 2
ENOUGH_STEPS = 10
FIRST_REVIEW_SHARE = 0.05
# The step time is the median of this many last steps.
RECENT_STEPS = 20
SECONDS_BETWEEN_SAVES = 60.0
EVALUATIONS = 6
# Share of a budget spent on evaluations, not counting the last one.
EVALUATION_SHARE = 0.06
SECONDS_FOR_SAVING = 1.5
# Cost of the forward pass, relative to a training step on as many tokens.
FORWARD_COST = 0.4


class StepBudget:
    """The plan of a run: its learning-rate schedule and number of steps, and when to evaluate and save.

    With a time budget, the number of steps is reviewed after a few steps, when the learning rate begins to fall, and
    at shrinking intervals towards the end. Each review is written to plan.json before it takes effect, so a resumed
    run repeats the plan it had.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: LoopConfig,
        evaluation_in_steps: float,
        accelerator: Accelerator,
        seconds_used: float = 0.0,
    ) -> None:
        """`evaluation_in_steps`: tokens of one evaluation divided by those of one training step; `seconds_used`: time
        of the budget that this launch has already used."""
        self.config = config
        self.max_steps = config.max_steps or UNKNOWN
        self.seconds = config.budget_seconds
        self.accelerator = accelerator
        self.path = run.path / "plan.json"
        self.schedule = Schedule(config.schedule, self.max_steps)
        self.evaluate_every = config.evaluate_every or max(1, self.max_steps // EVALUATIONS)
        self.save_every = config.save_every or self.evaluate_every
        self.next_review = FIRST_REVIEW
        self.elapsed_before = 0.0
        self._evaluation_in_steps = evaluation_in_steps
        self._evaluation_seconds: float | None = None
        self._step_seconds: deque[float] = deque(maxlen=100)
        self._started = time.monotonic() - seconds_used
        # (step, state of the schedule) of each review, in effect from that step on.
        self.history: list[tuple[int, dict[str, Any]]] = []
        plan = broadcast(read_json(self.path) if accelerator.is_main_process else None, accelerator)
        if plan:
            self._load(plan)

    @property
    def total(self) -> int:
        """The number of steps as planned now."""
        return self.schedule.total

    @property
    def known_total(self) -> int | None:
        """The number of steps, or None while a time budget has not been reviewed yet."""
        return self.total if self.seconds is None or self.history else None

    @property
    def elapsed(self) -> float:
        """Seconds of training in this and earlier launches."""
        return self.elapsed_before + time.monotonic() - self._started

    @property
    def seconds_left(self) -> float | None:
        """Seconds left of the budget while the number of steps is unknown, else None."""
        return self.seconds - self.elapsed if self.seconds is not None and self.known_total is None else None

    def resume(self, step: int, elapsed: float) -> None:
        """Continue at `step` after `elapsed` seconds of earlier launches; reviews after `step` are repeated."""
        self.elapsed_before = elapsed
        if self.history and self.history[-1][0] > step:
            self._record(step)
            if self.accelerator.is_main_process:
                write_json(self.path, self._state())

    def schedule_at(self, step: int) -> Schedule:
        """The schedule that `step` was or will be computed with, regardless of later reviews."""
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
        """Adapt the plan before `step` if a review is due; returns whether the plan changed. Collective."""
        if step < self.next_review or step >= self.total or not self._step_seconds:
            return False
        first = self.next_review == FIRST_REVIEW
        recent = sorted(list(self._step_seconds)[-RECENT_STEPS:])
        step_seconds, elapsed, evaluation = broadcast(
            (recent[len(recent) // 2], self.elapsed, self._evaluation_seconds), self.accelerator
        )
        if first and step < ENOUGH_STEPS and elapsed < FIRST_REVIEW_SHARE * (self.seconds or float("inf")):
            return False
        if first and self.config.save_every is None:
            self.save_every = max(1, round(SECONDS_BETWEEN_SAVES / step_seconds))
        if self.seconds is not None:
            evaluation = evaluation or FORWARD_COST * self._evaluation_in_steps * step_seconds
            self._fit_budget(step, step_seconds, self.seconds - elapsed - SECONDS_FOR_SAVING, evaluation, first)
        self.next_review = self._review_after(step)
        self._record(step)
        if self.accelerator.is_main_process:
            try:
                write_json(self.path, self._state())
            except OSError as error:
                print(
                    f"{self.path}: could not be written ({error.strerror or error}); if this run is killed, it will "
                    "plan its steps anew when it resumes",
                    file=sys.stderr,
                )
        self.accelerator.wait_for_everyone()
        return True

    def _fit_budget(self, step: int, step_seconds: float, left: float, evaluation: float, first: bool) -> None:
        """Set the number of steps, and at the first review `evaluate_every`, to use the `left` seconds."""
        # The last evaluation always takes place.
        left -= evaluation
        chooses = first and self.config.evaluate_every is None
        if chooses:
            # No others if the last one takes all the time left.
            count = max(0, min(EVALUATIONS - 1, int(EVALUATION_SHARE * left / evaluation)))
            total = step + int((left - count * evaluation) / step_seconds)
        else:
            count = 0
            total = step + int(left / (step_seconds + evaluation / self.evaluate_every))
        self.schedule.retotal(step, min(max(total, step + 1), self.max_steps))
        if chooses:
            self.evaluate_every = math.ceil(self.total / (count + 1))

    def _review_after(self, step: int) -> int:
        """The step of the next review: half-way to the decay, at its beginning, then half-way to the end."""
        if self.seconds is None:
            return UNKNOWN
        if step < self.schedule.decay_start:
            middle = (step + self.schedule.decay_start) // 2
            return middle if middle - step > ENOUGH_STEPS else self.schedule.decay_start
        left = self.total - step
        return step + left // 2 if left >= 2 else UNKNOWN

    def _record(self, step: int) -> None:
        self.history = [entry for entry in self.history if entry[0] < step] + [(step, self.schedule.state())]

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
