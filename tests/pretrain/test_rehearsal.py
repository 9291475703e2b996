"""The plan by measured speed, on simulated machines: what is chosen, what is not measured, and that a run keeps it."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mini_llm.engine.config import build_config
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.kernels import attention, install
from mini_llm.engine.kernels.install import use_kernels
from mini_llm.engine.kernels.load import load_kernels
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.model import HEADS
from pretrain.choices import read_choices, with_choices, write_choices
from pretrain.config import PretrainConfig
from pretrain.plan import comparison, compiling, rehearsal, speed
from pretrain.plan.comparison import GAIN_OF_ONE_THREAD
from pretrain.plan.draft import DraftTokenizer, memory_setup
from pretrain.plan.rehearsal import LEAST_SECONDS, SHARE, rehearse
from pretrain.plan.setup import Way
from pretrain.plan.sizes import MakePlan, Plan, make_plan
from pretrain.plan.trial_steps import Trial

CPU, LARGE = torch.device("cpu"), 400_000_000


class Machine:
    """A machine with a clock, on which steps take a simulated time.

    flops: FLOP/s of a step by width. slower: by how much a way is slower, times 1. compile_seconds: of a first compiled
    step.
    """

    def __init__(self, flops=lambda width: 1.7e11, slower=lambda way: 1.0, compile_seconds: float = 20.0):
        self.now, self.flops, self.slower, self.compile_seconds = 0.0, flops, slower, compile_seconds
        self.tried: list[tuple[int, Way]] = []

    def monotonic(self) -> float:
        return self.now

    def trial(self, config, model, setup) -> "SimulatedTrial":
        return SimulatedTrial(self, model, setup)

    @property
    def widths(self) -> list[int]:
        return list(dict.fromkeys(width for width, _ in self.tried))

    def ways(self, name: str) -> set:
        return {getattr(way, name) for _, way in self.tried}


class SimulatedTrial(Trial):
    def __init__(self, machine: Machine, model, setup) -> None:
        self.machine, self.model, self.setup, self.is_new = machine, model, replace(setup, kernels=True), True

    def seconds_per_row(self, way: Way, rows: int) -> float:
        machine, rows = self.machine, max(1, rows // way.micro_batch_size) * way.micro_batch_size
        per_token = flops(self.model, self.setup.length)
        seconds = self.setup.length * per_token / machine.flops(self.model.hidden_size) * machine.slower(way)
        machine.now += seconds * rows + (machine.compile_seconds if way.compile and self.is_new else 0.0)
        self.is_new = False
        machine.tried.append((self.model.hidden_size, way))
        return seconds


def flops(model, length: int) -> float:
    return flops_per_token(model, length, 1.0)


@pytest.fixture(autouse=True)
def simulated(monkeypatch, tmp_path):
    """Matrix products at 430 GFLOP/s, two threads, a compiler, and no compilation on record."""
    for module in (speed, comparison):
        monkeypatch.setattr(module, "matmul_ceiling", lambda *_: 4.3e11)
    monkeypatch.setattr(comparison.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(rehearsal, "gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr(compiling, "compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(compiling.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setenv(compiling.VARIABLE, str(tmp_path / "inductor"))


@pytest.fixture
def on(monkeypatch):
    """Rehearse a run on a machine: returns its plan, the seconds taken and what was said."""

    def rehearsed(machine: Machine, ranks: int = 1, tokens: int = LARGE, **settings):
        for module in ("mini_llm.engine.run.deadline", "pretrain.plan.rehearsal", "pretrain.plan.comparison"):
            monkeypatch.setattr(f"{module}.time", machine)
        for module in (rehearsal, comparison):
            monkeypatch.setattr(module, "Trial", machine.trial)
        config, make = maker(ranks, tokens, **settings)
        said: list[str] = []
        plan, seconds = rehearse(config, make, ranks, CPU, said.append)
        assert seconds == machine.now
        return SimpleNamespace(plan=plan, seconds=seconds, said=said, config=config, make=make)

    return rehearsed


def maker(ranks: int = 1, tokens: int = LARGE, **settings) -> tuple[PretrainConfig, MakePlan]:
    config = build_config(PretrainConfig, {"budget": "5m", **settings}, "test")
    return config, partial(make_plan, config, None, DraftTokenizer(1024), tokens, None, ranks, CPU)


def row(plan: Plan, what: str) -> tuple[str, str]:
    return next((value, why) for name, value, why in plan.reasons if name == what)


def test_the_width_follows_from_the_speed_of_steps_and_not_from_that_of_matrix_products(on, monkeypatch):
    slow, fast = on(Machine(lambda width: 0.3e11)), on(Machine(lambda width: 8e11))
    assert slow.plan.config.hidden_size < fast.plan.config.hidden_size
    assert slow.plan.global_batch_size <= fast.plan.global_batch_size
    monkeypatch.setattr(speed, "matmul_ceiling", lambda *_: 12e11)
    assert on(Machine(lambda width: 0.3e11)).plan.config == slow.plan.config


def test_the_speed_is_measured_at_the_chosen_width_or_beside_it(on):
    machine = Machine(lambda width: 5e8 * width)
    found = on(machine)
    assert machine.widths[0] == found.make(None).config.hidden_size
    assert machine.widths[-1] == found.plan.config.hidden_size
    assert row(found.plan, "speed")[0] == f"{5e8 * found.plan.config.hidden_size / 1e9:,.0f} GFLOP/s"
    assert "measured in training steps" in row(found.plan, "speed")[1]


def test_one_width_is_measured_where_the_first_was_right(on):
    machine = Machine(lambda width: 0.4 * 4.3e11)
    assert machine.widths == [] and on(machine).plan.config == maker()[1](None).config
    assert len(machine.widths) == 1


@pytest.mark.parametrize("speed_of_steps", [1e8, 1e9, 1e10, 1e11, 1e12])
@pytest.mark.parametrize("budget", ["30s", "5m", "2h"])
def test_a_rehearsal_keeps_to_its_share_but_for_the_first_steps_of_a_model(on, budget, speed_of_steps):
    machine = Machine(lambda width: speed_of_steps)
    found = on(machine, budget=budget, runtime={"compile": False})
    plans = found.make(None), found.plan
    steps = [plan.micro_batch_size * plan.length * flops(plan.config, plan.length) / speed_of_steps for plan in plans]
    # Two steps of each of the two widths, and those of one comparison.
    assert found.seconds <= SHARE * found.config.budget_seconds + 4 * max(steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": None, "max_steps": 100},
        {"max_steps": 10_000},
        {"budget": "20s"},
        {"tokens": 100_000, "max_epochs": 1.0},
        {"ranks": 2},
        {"sizes": {"hidden_size": 16_384, "num_hidden_layers": 100}},
        {"sizes": {"hidden_size": 1024}},
        {"runtime": {"zero_stage": 1}},
    ],
)
def test_nothing_is_measured_where_it_cannot_pay_or_steps_are_given(on, settings):
    machine = Machine(lambda width: 1e9)
    found = on(machine, **settings)
    assert not machine.tried and not found.said and found.seconds == 0.0
    assert found.plan == maker(**settings)[1](None)


def test_the_shortest_rehearsal_is_longer_than_a_first_step():
    assert SHARE * 30 >= LEAST_SECONDS


def in_pytorch(plan: Plan) -> bool:
    return plan.attention == "pytorch"


FASTER = {
    "fewer rows": ("micro_batch_size", lambda way: way.micro_batch_size / 16, lambda plan: plan.micro_batch_size < 16),
    "more rows": ("micro_batch_size", lambda way: 64 / way.micro_batch_size, lambda plan: plan.micro_batch_size > 32),
    "fewer logits": ("logit_rows", lambda way: 1 + (way.logit_rows or 4096) / 4e4, lambda plan: plan.logit_rows < 4096),
    "one thread": ("threads", lambda way: 1.0 if way.threads == 1 else 1.3, lambda plan: plan.threads == 1),
    "other attention": ("attention", lambda way: 1.0 if way.attention == "pytorch" else 2.0, in_pytorch),
    "compiled": ("compile", lambda way: 1.0 if way.compile else 1.3, lambda plan: plan.compile),
}


@pytest.mark.parametrize("name", FASTER)
def test_the_fastest_way_is_chosen_and_its_speed_is_the_reason(on, name):
    what, slower, is_chosen = FASTER[name]
    found = on(Machine(slower=slower), budget="30m", runtime={"precision": "fp32"})
    assert is_chosen(found.plan)
    value, why = row(found.plan, what)
    chosen = getattr(found.plan, what)
    assert value.replace(",", "") == ("yes" if what == "compile" else str(chosen)) and "tokens/s" in why


def test_a_gain_within_the_noise_changes_nothing(on):
    usual = maker(budget="30m")[1](None).way
    found = on(Machine(slower=lambda way: 1.0 if way == usual else 0.98), budget="30m")
    assert found.plan.micro_batch_size == usual.micro_batch_size and found.plan.threads == 2 and not found.plan.compile


def test_one_thread_has_to_gain_more_than_noise_since_other_work_may_end(on):
    gain = (1 + GAIN_OF_ONE_THREAD) / 2
    found = on(Machine(slower=lambda way: 1.0 if way.threads == 1 else gain), budget="30m")
    assert found.plan.threads == 2


def test_what_the_user_gives_is_not_measured(on):
    given = {"micro_batch_size": 8, "runtime": {"threads": 1, "logit_rows": 300, "attention": "pytorch"}}
    given["runtime"]["compile"] = False
    machine = Machine()
    found = on(machine, budget="30m", **given)
    assert machine.ways("micro_batch_size") == {8} and machine.ways("compile") == {False}
    assert machine.ways("threads") == {1} and machine.ways("logit_rows") == {300}
    assert found.plan.way == Way(8, 1, 300, "pytorch", False)


def test_compiling_is_not_tried_where_its_time_would_be_lost(on):
    machine = Machine(slower=lambda way: 0.5 if way.compile else 1.0)
    found = on(machine, budget="1m")
    assert machine.ways("compile") == {False} and not found.plan.compile
    assert "do not pay for" in row(found.plan, "compile")[1]


def test_compiling_that_has_gained_nothing_is_not_tried_again(on):
    first, again = Machine(slower=lambda way: 1.05 if way.compile else 1.0), Machine()
    found = on(first, budget="30m")
    assert not found.plan.compile and first.ways("compile") == {False, True}
    found = on(again, budget="30m")
    assert again.ways("compile") == {False} and "0.95 times as fast (measured in an earlier run)" in str(
        row(found.plan, "compile")
    )


def test_a_warm_cache_lets_shorter_runs_compile(on, monkeypatch):
    monkeypatch.setattr(compiling, "compile_key", lambda *_: "the same")
    monkeypatch.setattr(comparison, "compile_key", lambda *_: "the same")
    better = {"slower": lambda way: 1.0 if way.compile else 1.3}
    assert not on(Machine(**better), budget="1m").plan.compile
    compiling.write_compiled("the same", compiling.Compiled(seconds=3.0, gain=1.3))
    assert on(Machine(**better, compile_seconds=3.0), budget="1m").plan.compile


def test_compiling_costs_more_beside_other_work(monkeypatch):
    cores = compiling.usable_cores()
    monkeypatch.setattr(compiling.os, "getloadavg", lambda: (3.0 * cores, 0.0, 0.0))
    known = {"this": compiling.Compiled(seconds=4.0, gain=1.1), "other": compiling.Compiled(seconds=20.0, gain=1.1)}
    assert [compiling.cost_in_seconds(known, key, CPU) for key in ("this", "a new one")] == [12.0, 60.0]


def test_a_compiler_that_fails_is_a_reason_and_no_error(on, monkeypatch):
    machine = Machine()

    working = machine.trial

    def trial(config, model, setup):
        if config.runtime.compile is True:
            raise RuntimeError("CppCompileError: C++ compile error\nCommand: ...")
        return working(config, model, setup)

    monkeypatch.setattr(machine, "trial", trial)
    found = on(machine, budget="30m")
    assert not found.plan.compile and "C++ compile error" in row(found.plan, "compile")[1]


def test_a_resumed_run_has_the_plan_of_its_first_launch(on, tmp_path, monkeypatch):
    machine = Machine(
        lambda width: 5e8 * width, lambda way: (1.0 if way.threads == 1 else 1.5) * 16 / way.micro_batch_size
    )
    found = on(machine, budget="30m")
    assert found.plan.threads == 1 and found.plan.logit_rows and found.plan.way != found.make(None).way
    with RunDirectory(tmp_path / "run") as run:
        write_choices(run, found.config, found.plan)
        assert read_choices(run) is None
        (run.checkpoints / "step-00000001").mkdir(parents=True)
        choices = read_choices(run)
    config = with_choices(found.config, choices)
    again = make_plan(config, None, DraftTokenizer(1024), LARGE, None, 1, CPU, choices.speed)
    assert replace(again, reasons=found.plan.reasons, seconds=found.plan.seconds) == found.plan
    # Other ranks have a smaller share of each batch, and choose anew how they compute it.
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = with_choices(found.config, choices)
    assert config.global_batch_size == found.plan.global_batch_size and config.micro_batch_size is None
    assert config.runtime.threads is None and config.runtime.compile == found.plan.compile


@pytest.mark.parametrize(("setting", "taken"), [("auto", 0), ("kernel", 1), ("pytorch", 0)])
def test_the_setting_decides_about_the_attention_kernel_where_the_rule_would_not_take_it(monkeypatch, setting, taken):
    if load_kernels() is None:
        pytest.skip("this machine has no kernels")
    monkeypatch.setattr(attention, "FASTER_IN_BF16", False)
    calls, kernel = [], install.fused_attention
    monkeypatch.setattr(install, "fused_attention", lambda *tensors: calls.append(1) or kernel(*tensors))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config, make = maker(sizes=sizes, runtime={"device": "cpu", "precision": "bf16", "attention": setting})
    plan = make(None)
    model = HEADS["causal"](plan.config)
    use_kernels(model, setting)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 8, dtype=torch.long))
    setup = replace(memory_setup(config, plan, 1, 0, CPU), kernels=True)
    assert len(calls) == taken and bool(setup.longest_in_kernel) == bool(taken)


def test_a_trial_leaves_the_random_state_and_the_threads_as_they_were():
    # Accelerate keeps the precision of the first run of a process, which is fp32 in the other tests.
    sizes, runtime = {"hidden_size": 32, "num_hidden_layers": 1}, {"device": "cpu", "precision": "fp32"}
    config, make = maker(sizes=sizes, runtime=runtime)
    plan = make(None)
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    trial = Trial(config, plan.config, memory_setup(config, plan, 1, 0, CPU))
    assert trial.seconds_per_row(Way(2, threads=1, logit_rows=7), rows=4) > 0
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads
