"""When to stop, evaluate and save: from a number of steps, or from a wall-time budget and the measured step time."""

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from engine.files import read_json, write_json
from engine.run_directory import RunDirectory
from engine.schedule import Schedule

if TYPE_CHECKING:
    from engine.loop import LoopConfig

UNKNOWN = 1 << 40
FIRST_REVIEW = 10
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
        budget: float | None,
        evaluation_in_steps: float,
        accelerator: Accelerator,
    ) -> None:
        """`evaluation_in_steps`: the tokens of one evaluation divided by those of one training step."""
        self.config = config
        self.max_steps = config.max_steps or UNKNOWN
        self.budget = budget
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
        self._started = time.monotonic()
        plan = broadcast(read_json(self.path) if accelerator.is_main_process else None, accelerator)
        if plan:
            self._load(plan)

    @property
    def total(self) -> int:
        return self.schedule.total

    @property
    def elapsed(self) -> float:
        """Seconds of this and earlier launches."""
        return self.elapsed_before + time.monotonic() - self._started

    def step_took(self, seconds: float) -> None:
        self._step_seconds.append(seconds)

    def evaluation_took(self, seconds: float) -> None:
        self._evaluation_seconds = seconds

    def review(self, step: int) -> bool:
        """Before `step`: adapt the plan if it is time to. Returns whether the plan changed. Collective."""
        if step != self.next_review or step >= self.total:
            return False
        times = sorted(self._step_seconds)
        step_seconds = times[len(times) // 2] if times else None
        step_seconds = broadcast(step_seconds, self.accelerator)
        if step_seconds is None:
            return False
        if step == FIRST_REVIEW and self.config.save_every is None:
            self.save_every = max(1, round(SECONDS_BETWEEN_SAVES / step_seconds))
        if self.budget is not None:
            self._fit_budget(step, step_seconds)
        self.next_review = self._after(step)
        if self.accelerator.is_main_process:
            write_json(self.path, self._state())
        self.accelerator.wait_for_everyone()
        return True

    def _fit_budget(self, step: int, step_seconds: float) -> None:
        evaluation = self._evaluation_seconds
        if evaluation is None:
            # A forward pass is a third of a training step.
            evaluation = 0.4 * self._evaluation_in_steps * step_seconds
        elapsed, evaluation = broadcast((self.elapsed, evaluation), self.accelerator)
        left = self.budget - elapsed - SECONDS_FOR_SAVING - evaluation
        if step == FIRST_REVIEW and self.config.evaluate_every is None:
            count = min(EVALUATIONS - 1, int(EVALUATION_SHARE * self.budget / max(evaluation, 1e-9)))
            total = step + max(1, int((left - count * evaluation) / step_seconds))
            self.evaluate_every = max(1, -(-min(total, self.max_steps) // (count + 1)))
        evaluations = max(0, (self.total if self.total < UNKNOWN else 0) - step) // self.evaluate_every
        if step == FIRST_REVIEW:
            evaluations = max(0, int(left / step_seconds) // self.evaluate_every)
        total = step + int((left - evaluations * evaluation) / step_seconds)
        self.schedule.retotal(step, min(max(total, step + 1), self.max_steps))

    def _after(self, step: int) -> int:
        """The next step to review at: where the rate begins to fall, then half-way to the end again and again."""
        if self.budget is None:
            return UNKNOWN
        if step < self.schedule.decay_start:
            # A look on the way too: the first steps tell the speed badly.
            middle = (step + self.schedule.decay_start) // 2
            return middle if step <= FIRST_REVIEW and middle > step else self.schedule.decay_start
        left = self.total - step
        return step + left // 2 if left >= 8 else UNKNOWN

    def _state(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule.state(),
            "evaluate_every": self.evaluate_every,
            "save_every": self.save_every,
            "next_review": self.next_review,
        }

    def _load(self, plan: dict[str, Any]) -> None:
        self.schedule.load_state(plan["schedule"])
        self.evaluate_every = int(plan["evaluate_every"])
        self.save_every = int(plan["save_every"])
        self.next_review = int(plan["next_review"])


def broadcast(value: Any, accelerator: Accelerator) -> Any:
    """The main process's value on every rank."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]
