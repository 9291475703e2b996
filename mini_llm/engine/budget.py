"""How many steps to train, and when to evaluate and save: from max_steps, or from a time budget and the step time."""

import math
import sys
import time
from collections import deque
from typing import Any

from accelerate import Accelerator

from mini_llm.engine.distributed.collectives import agree, broadcast
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.state import StoredPlan, read_state
from mini_llm.engine.schedule import Schedule
from mini_llm.engine.settings import LoopConfig

# max_steps when only a time budget bounds the run.
UNKNOWN = 1 << 40
# The speed is first measured after ten steps, or earlier if those would take a twentieth of the budget; after one step,
# which is slower than the others, if that takes a fifth.
FIRST_REVIEW, EARLIEST_REVIEW = 2, 1
ENOUGH_STEPS = 10
FIRST_REVIEW_SHARE, EARLIEST_REVIEW_SHARE = 0.05, 0.2
# The step time is the mean of this many last steps, without the first step of a launch.
RECENT_STEPS = 20
# A review comes early when the steps until it take this many times as long as planned.
OVERDUE = 1.3
SECONDS_BETWEEN_SAVES = 60.0
EVALUATIONS = 6
# Share of a budget spent on evaluations, not counting the last one; and the largest share for one of them, which on a
# slow machine then reads only a part of the held-out data.
EVALUATION_SHARE, LONGEST_EVALUATION_SHARE = 0.06, 0.25
SECONDS_FOR_SAVING = 1.5
# Cost of the forward pass, relative to a training step on as many tokens.
FORWARD_COST = 0.4


class StepBudget:
    """The plan of a run: its learning-rate schedule and number of steps, and when to evaluate and save.

    With a time budget, the number of steps is reviewed after a few steps, when the learning rate begins to fall, at
    shrinking intervals towards the end, and whenever the steps take longer than planned. A slow machine does fewer
    steps, but the learning rate always falls to its end. Each review is written to plan.json before it takes effect,
    so a resumed run repeats the plan it had.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: LoopConfig,
        evaluation_in_steps: float,
        accelerator: Accelerator,
        seconds_used: float = 0.0,
        can_shorten: bool = False,
    ) -> None:
        """`evaluation_in_steps`: tokens of one evaluation divided by those of one training step; `seconds_used`: time
        of the budget that this launch has already used; `can_shorten`: evaluations follow `evaluation_share`."""
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
        # Share of the held-out data that evaluations read; None before the first one.
        self.evaluation_share: float | None = None
        self._can_shorten = can_shorten
        self._saving_seconds = SECONDS_FOR_SAVING
        self._step_seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._first_step: float | None = None
        # Elapsed seconds at the last evaluation, and the step of the next one, known from a review on.
        self._evaluated = 0.0
        self._next_evaluation: int | None = None
        # Elapsed seconds after which a review is overdue.
        self._review_by = math.inf
        self._started = time.monotonic() - seconds_used
        # (step, state of the schedule) of each review, in effect from that step on.
        self.history: list[tuple[int, dict[str, Any]]] = []
        plan = read_state(self.path, StoredPlan, run.main_process) if accelerator.is_main_process else None
        if plan := broadcast(plan, accelerator):
            self._load(plan)
        self._evaluation_in_steps = evaluation_in_steps * (self.evaluation_share or 1.0)

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
        """Continue at `step` after `elapsed` seconds of earlier launches; a budget repeats reviews after `step`."""
        self.elapsed_before = self._evaluated = elapsed
        if self.seconds is not None and self.history and self.history[-1][0] > step:
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
        if self._first_step is None:
            self._first_step = seconds
        else:
            self._step_seconds.append(seconds)

    def evaluation_took(self, seconds: float) -> None:
        self._evaluation_in_steps = seconds / self._seconds_per_step / FORWARD_COST
        self._evaluated, self._next_evaluation = self.elapsed, None

    def saving_took(self, seconds: float) -> None:
        """Record the time of a checkpoint; the final one and the model take as long."""
        self._saving_seconds = max(SECONDS_FOR_SAVING, seconds)

    @property
    def _seconds_per_step(self) -> float:
        recent = self._step_seconds or [self._first_step or 0.0]
        return max(sum(recent) / len(recent), 1e-9)

    def evaluation_due(self, step: int, last: int) -> bool:
        """Whether to evaluate after `step`, when the last evaluation was after step `last`."""
        if self.seconds is None or self.config.evaluate_every:
            return step % self.evaluate_every == 0
        # Not just before the last evaluation.
        return step >= (self._next_evaluation or last + self.evaluate_every) and self.evaluate_every <= 2 * (
            self.total - step
        )

    def out_of_patience(self, waited: int, since_best: int) -> bool:
        """Whether `waited` evaluations without improvement, in `since_best` steps, end the run.

        Where the evaluations are spaced by rule, the steps must also be those of `patience` evaluations of a whole run:
        evaluations that follow each other quickly do not count for more.
        """
        patience = self.config.patience
        if patience is None or waited < patience:
            return False
        enough = 0.9 * patience * self.total / EVALUATIONS
        return self.config.evaluate_every is not None or since_best >= enough

    def review(self, step: int) -> bool:
        """Adapt the plan after `step` steps if a review is due; returns whether the plan changed. Collective.

        The number of steps may become `step`: the time is over.
        """
        overdue = self.seconds is not None and bool(agree(int(self.elapsed > self._review_by), self.accelerator))
        if step >= self.total or self._first_step is None:
            return False
        if self.next_review == FIRST_REVIEW:
            return step >= EARLIEST_REVIEW and self._first_review(step)
        if step < self.next_review and not overdue:
            return False
        self._plan(step, *self._measured())
        return True

    def _measured(self) -> tuple[float, float]:
        """(seconds per step, seconds elapsed) of the main process, whose other measurements every rank takes over."""
        mine = self._evaluation_in_steps, self._saving_seconds, self._evaluated
        measured = broadcast((self._seconds_per_step, self.elapsed, mine), self.accelerator)
        step_seconds, elapsed, (self._evaluation_in_steps, self._saving_seconds, self._evaluated) = measured
        return step_seconds, elapsed

    def _first_review(self, step: int) -> bool:
        step_seconds, elapsed = self._measured()
        seconds = self.seconds or math.inf
        share = EARLIEST_REVIEW_SHARE if step < FIRST_REVIEW else FIRST_REVIEW_SHARE
        if step < ENOUGH_STEPS and elapsed < share * seconds:
            return False
        if self.config.save_every is None:
            self.save_every = max(1, round(SECONDS_BETWEEN_SAVES / step_seconds))
        self._plan(step, step_seconds, elapsed)
        return True

    def _plan(self, step: int, step_seconds: float, elapsed: float) -> None:
        if self.seconds is not None:
            self._fit_budget(step, step_seconds, elapsed, self.seconds - elapsed - self._saving_seconds)
        self.next_review = self._review_after(step)
        until = OVERDUE * step_seconds * (min(self.next_review, self.total) - step)
        self._review_by = math.inf if self.seconds is None else elapsed + until
        self._record(step)
        self._write()

    def share_to_evaluate(self) -> float:
        """The share of the held-out data that evaluations read, chosen before the first of them. Collective."""
        if self.seconds is None:
            return 1.0
        if self.evaluation_share is None:
            step_seconds, _ = self._measured()
            self.evaluation_share = min(1.0, self._longest_evaluation / self._evaluation(step_seconds))
            self._evaluation_in_steps *= self.evaluation_share
            self._write()
        return self.evaluation_share

    @property
    def _longest_evaluation(self) -> float:
        """Seconds that one evaluation may take."""
        may_shorten = self.seconds is not None and self._can_shorten and self.evaluation_share is None
        return LONGEST_EVALUATION_SHARE * self.seconds if may_shorten else math.inf

    def _evaluation(self, step_seconds: float) -> float:
        """Seconds that one evaluation takes."""
        return max(FORWARD_COST * self._evaluation_in_steps * step_seconds, 1e-9)

    def _write(self) -> None:
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

    def _fit_budget(self, step: int, step_seconds: float, elapsed: float, left: float) -> None:
        """Set the number of steps and the spacing of evaluations to use the `left` seconds."""
        evaluation = min(self._evaluation(step_seconds), self._longest_evaluation)
        # The last evaluation always takes place.
        left = max(0.0, left - evaluation)
        if self.config.evaluate_every is None:
            seconds = min(left, (self.max_steps - step) * step_seconds)
            whole = elapsed + seconds
            count = min(EVALUATIONS - 1, int(EVALUATION_SHARE * whole / evaluation))
            steps = (left - count * seconds / whole * evaluation) / step_seconds
            # Evaluations have equal distances in time, also when the speed changes.
            distance = whole / (count + 1)
            self.evaluate_every = math.ceil(distance / step_seconds)
            since = min(elapsed - self._evaluated, distance)
            self._next_evaluation = step + max(1, math.ceil((distance - since) / step_seconds))
        else:
            steps = left / (step_seconds + evaluation / self.evaluate_every)
        # The end may come half a step late.
        self.schedule.retotal(step, min(step + round(steps), self.max_steps))

    def _review_after(self, step: int) -> int:
        """The step of the next review: half-way to the decay, at its beginning, then half-way to the end."""
        if self.seconds is None or self.total <= step:
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
            "evaluation_share": self.evaluation_share,
            "history": self.history,
        }

    def _load(self, plan: StoredPlan) -> None:
        self.schedule.load_state(plan.schedule.model_dump())
        self.evaluate_every, self.save_every, self.next_review = plan.evaluate_every, plan.save_every, plan.next_review
        self.evaluation_share = plan.evaluation_share
        self.history = [(step, state.model_dump()) for step, state in plan.history]
