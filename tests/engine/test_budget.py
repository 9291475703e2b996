"""A time budget on simulated clocks: it is kept, and the learning rate falls to its end, however slow the machine."""

import json
from pathlib import Path

import pytest

from mini_llm.engine.budget import EVALUATIONS, SECONDS_FOR_SAVING, StepBudget
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.schedule import Schedule
from mini_llm.engine.settings import LoopConfig, ScheduleConfig
from tests.loops import accelerator


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Run:
    """What the training loop does with its budget, when a step takes `step(number)` seconds."""

    def __init__(self, path: Path, clock: Clock, step, evaluation: float = 0.0, budget: float = 100.0, **settings):
        fields = {"max_steps": None, "evaluate_every": None, "save_every": None, "budget": f"{budget}s"}
        config = LoopConfig(**{**fields, **settings})
        with RunDirectory(path) as directory:
            self.budget = StepBudget(directory, config, evaluation / 0.4 / step(1), accelerator(), can_shorten=True)
        budget, self.factors, self.evaluated, done, last = self.budget, [], [], 0, 0
        while done < budget.total:
            self.factors.append(budget.schedule.factor(done))
            done += 1
            clock.now += step(done)
            budget.step_took(step(done))
            budget.review(done)
            if done == budget.total or budget.evaluation_due(done, last):
                seconds = evaluation * step(done) / step(1) * budget.share_to_evaluate()
                clock.now += seconds
                budget.evaluation_took(seconds)
                self.evaluated.append(clock.now)
                last = done
        self.steps = done


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mini_llm.engine.budget.time", clock)
    return clock


SPEEDS = {
    "steady": lambda n: 0.1,
    "few steps": lambda n: 4.0,
    "very few steps": lambda n: 30.0,
    "slow first step": lambda n: 15.0 if n == 1 else 0.1,
    "slow start": lambda n: 1.5 if n <= 12 else 0.1,
    "slower from a third on": lambda n: 0.1 if n < 330 else 0.8,
    "slower in the decay": lambda n: 0.1 if n < 700 else 0.4,
    "stalling in the decay": lambda n: 0.1 if n < 720 else 2.0,
    "ten times faster": lambda n: 1.0 if n < 30 else 0.1,
}


@pytest.mark.parametrize("evaluation", [0.0, 3.0])
@pytest.mark.parametrize("name", SPEEDS)
def test_the_budget_is_kept_and_the_rate_falls_to_its_end(name, evaluation, clock, tmp_path):
    step = SPEEDS[name]
    run = Run(tmp_path, clock, step, evaluation)
    # The end may come half a step late, and the last evaluation may be slower than was known when the rate fell.
    slack = step(run.steps) + evaluation * step(run.steps) / step(1)
    assert 90 - slack - SECONDS_FOR_SAVING < clock.now <= 100 + slack
    falling = [b - a for a, b in zip(run.factors, run.factors[1:], strict=False)]
    # The last evaluation of a stalling machine may take all that is left.
    if run.steps > 3 and not (evaluation and name.startswith("stalling")):
        assert run.factors[-1] < 0.4 * max(run.factors) and falling[-1] < 0
    # The rates that the run had are those that its history gives to a replay.
    assert [run.budget.schedule_at(i).factor(i) for i in range(run.steps)] == run.factors


@pytest.mark.parametrize("name", ["steady", "slow start", "slower from a third on", "ten times faster"])
def test_evaluations_are_spaced_over_the_whole_run(name, clock, tmp_path):
    run = Run(tmp_path, clock, SPEEDS[name], evaluation=0.05)
    gaps = [b - a for a, b in zip([0.0, *run.evaluated], run.evaluated, strict=False)]
    assert EVALUATIONS - 1 <= len(run.evaluated) <= EVALUATIONS + 1 and run.evaluated[-1] == clock.now
    assert min(gaps) > 8 and max(gaps) < 32


def test_an_evaluation_that_would_take_the_whole_budget_reads_a_part(clock, tmp_path):
    run = Run(tmp_path, clock, lambda n: 0.5, evaluation=200.0)
    assert clock.now <= 100 and 0 < run.budget.evaluation_share < 0.13 and run.steps > 100
    # A resumed run reads the same part.
    with RunDirectory(tmp_path) as directory:
        again = StepBudget(directory, run.budget.config, 1.0, accelerator(), can_shorten=True)
    assert again.share_to_evaluate() == run.budget.evaluation_share


def test_without_a_budget_evaluations_read_everything(clock, tmp_path):
    with RunDirectory(tmp_path) as directory:
        budget = StepBudget(directory, LoopConfig(max_steps=100), 1e6, accelerator(), can_shorten=True)
    budget.step_took(1.0)
    assert budget.share_to_evaluate() == 1.0


@pytest.mark.parametrize(
    ("every", "waited", "since_best", "ends"),
    [(None, 3, 500, True), (None, 3, 100, False), (None, 2, 900, False), (1, 3, 3, True), (None, 9, 440, False)],
)
def test_patience_counts_the_steps_of_evaluations_at_the_usual_distance(every, waited, since_best, ends, tmp_path):
    config = LoopConfig(max_steps=1000, evaluate_every=every, patience=3)
    with RunDirectory(tmp_path) as directory:
        budget = StepBudget(directory, config, 1.0, accelerator())
    assert budget.out_of_patience(waited, since_best) == ends


@pytest.mark.parametrize("kind", ["wsd", "linear", "cosine"])
@pytest.mark.parametrize(("step", "total"), [(1, 3), (2, 4), (3, 8), (4, 200), (12, 13), (5, 5)])
def test_a_short_run_ends_its_warmup_early(kind, step, total):
    schedule = Schedule(ScheduleConfig(kind=kind, warmup_steps=10), 1 << 40)
    before = [schedule.factor(i) for i in range(step)]
    schedule.retotal(step, total)
    assert schedule.total == total
    if kind != "cosine":
        assert [schedule.factor(i) for i in range(step)] == pytest.approx(before)
    factors = [schedule.factor(i) for i in range(step, total)]
    assert all(0 < factor <= 1 for factor in factors)
    if total > step + 1:
        assert factors[-1] < max(factors)
    again = Schedule(ScheduleConfig(kind=kind, warmup_steps=10), 1 << 40)
    again.load_state(json.loads(json.dumps(schedule.state())))
    assert [again.factor(i) for i in range(step, total)] == factors
