"""The training loop: results do not depend on micro-batches, interruptions and resumes."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mini_llm.engine.batch import IGNORE_INDEX, BatchSplit
from mini_llm.engine.budget import StepBudget
from mini_llm.engine.checkpoint.format import find_damage, latest_checkpoint, write_manifest
from mini_llm.engine.distributed.zero import gather_state
from mini_llm.engine.errors import CheckpointError, NonFiniteError
from mini_llm.engine.loss import cross_entropy_sum
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.machine import compiler
from mini_llm.engine.run.signals import Interrupted
from mini_llm.engine.schedule import Schedule
from mini_llm.engine.settings import OptimConfig, RuntimeConfig, ScheduleConfig
from mini_llm.engine.step import prepare, train_step
from mini_llm.model import CausalLM
from tests.loops import accelerator, batches, checkpoint, config, final_files, fresh, run
from tests.models import decoder


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_compiled_layers_give_the_losses_of_eager_ones(tmp_path):
    losses = []
    for name, compile in (("eager", False), ("compiled", True)):
        torch.manual_seed(0)
        settings = config(max_steps=4, runtime=RuntimeConfig(precision="fp32", device="cpu", compile=compile))
        model = CausalLM(decoder(dropout=0.0))
        # No evaluation: it would be compiled too.
        run(tmp_path / name, settings, model=model, evaluate=lambda model: {"val/loss": 1.0})
        records = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([record["train/loss"] for record in records if "train/loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 4


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_accumulated_equals_large_batch(name, tmp_path):
    """With unequal label counts per micro-batch, which a mean of means would get wrong."""
    results = []
    for micro in (8, 2, 1):
        split = BatchSplit(8, micro)
        engine = accelerator(split.accumulation)
        model = CausalLM(decoder())
        torch.manual_seed(0)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        training = prepare(model, config(optim=OptimConfig(name=name)), engine)
        losses = [train_step(training, batches(step, split), 1.0, 1.0)[0] for step in range(3)]
        results.append((losses, gather_state(training.model, training.optimizer)[0]))
    for losses, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        # Muon's iteration in half precision amplifies the last bits of its input.
        tolerance = 1e-5 if name == "adamw" else 5e-3
        assert all((weights[k] - results[0][1][k]).abs().max() < tolerance for k in weights)


def test_gradients_equal_those_of_the_mean_loss():
    engine = accelerator(4)
    model, reference = fresh().eval(), fresh().eval()
    training = prepare(model, config(), engine)
    training.model.eval()
    captured = {}
    training.optimizer.step = lambda: captured.update({n: p.grad.clone() for n, p in model.named_parameters()})
    loss, norm = train_step(training, batches(0, BatchSplit(8, 2)), 1.0, 0.0)
    whole = batches(0, BatchSplit(8, 8))[0]
    labels = whole.pop("labels")
    expected = cross_entropy_sum(reference(**whole), labels) / (labels != IGNORE_INDEX).sum()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(captured[name], parameter.grad, atol=1e-6, rtol=1e-5)
    total = torch.stack([p.grad.norm() for p in reference.parameters()]).norm()
    assert norm == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("stop_at", [1, 3, 5, 7])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(name, stop_at, tmp_path):
    settings = config(optim=OptimConfig(name=name, lr=1e-2))
    run(tmp_path / "straight", settings)

    def interrupted(step: int, split: BatchSplit):
        if step == stop_at:
            raise KeyboardInterrupt
        return batches(step, split)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", settings, make=interrupted)
    # With a checkpoint, the second launch passes another model: all weights must come from the checkpoint.
    run(tmp_path / "resumed", settings, model=fresh(0 if stop_at < 3 else 5))
    assert final_files(tmp_path / "resumed") == final_files(tmp_path / "straight")


def test_a_signal_saves_and_the_run_resumes(tmp_path):
    run(tmp_path / "straight", config())

    def killed(step: int, split: BatchSplit):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(step, split)

    with pytest.raises(Interrupted) as stopped:
        run(tmp_path / "stopped", config(), make=killed)
    assert stopped.value.exit_code == 143
    assert latest_checkpoint(tmp_path / "stopped", print).name == "step-00000005"
    run(tmp_path / "stopped", config())
    assert final_files(tmp_path / "stopped") == final_files(tmp_path / "straight")


def test_it_learns_and_exports_the_best_weights(tmp_path):
    scores = run(tmp_path, config(max_steps=60, evaluate_every=10, save_every=30))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = [row["val/loss"] for row in rows if "val/loss" in row]
    assert values[-1] < 0.5 * values[0]
    assert scores["val/loss"] == min(values)
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 2
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 61))


def test_patience_stops_early(tmp_path):
    settings = config(max_steps=200, evaluate_every=1, save_every=50, patience=3, optim=OptimConfig(lr=0, muon_lr=0))
    run(tmp_path, settings)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.mark.slow
@pytest.mark.parametrize("slower", [1.0, 2.5])
def test_a_budget_bounds_the_steps(slower, tmp_path, monkeypatch):
    """A step takes 50 ms, an evaluation 200 ms; half-way through, the machine may become slower."""
    clock = Clock()
    monkeypatch.setattr("mini_llm.engine.budget.time", clock)
    monkeypatch.setattr("mini_llm.engine.loop.time", clock)
    monkeypatch.setattr("mini_llm.engine.budget.SECONDS_FOR_SAVING", 0.5)

    def timed(step: int, split: BatchSplit):
        clock.now += 0.05 * (1.0 if clock.now < 5 else slower)
        return batches(step, split)

    def evaluate(model) -> dict[str, float]:
        clock.now += 0.2
        return {"val/loss": 1.0 / (1 + clock.now)}

    settings = config(max_steps=None, evaluate_every=None, save_every=None, budget="10s")
    run(tmp_path, settings, make=timed, evaluate=evaluate)
    assert 0.9 * 10 < clock.now <= 10 - 0.5 + 0.25
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [row["train/lr"] for row in rows_with(rows, "train/lr")]
    assert rates[-1] < (0.05 if slower == 1.0 else 0.9) * max(rates)
    assert rows_with(rows, "val/loss")[-1]["step"] == rows[-1]["step"]
    assert json.loads((tmp_path / "plan.json").read_text())["schedule"]["total"] == rows[-1]["step"]


@pytest.mark.parametrize("stop_at", [None, 2, 4, 6])
def test_clm_batches_last_until_the_learning_rate_falls(stop_at, tmp_path):
    seen = []

    def noted(name):
        return lambda step, split=BatchSplit(8, 8): seen.append((step, name)) or batches(step, split)

    settings = config(schedule=ScheduleConfig(warmup_steps=2, decay_ratio=0.5))
    if stop_at:

        def interrupting(step, split=BatchSplit(8, 8)):
            if step + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return noted("clm" if step < 4 else "mlm")(step)

        with pytest.raises(Interrupted):
            run(tmp_path, settings, make=interrupting, clm_batches=interrupting)
    run(tmp_path, settings, make=noted("mlm"), clm_batches=noted("clm"))
    assert seen == [(step, "clm") for step in range(4)] + [(step, "mlm") for step in range(4, 8)]


def test_a_changed_plan_keeps_past_steps_on_their_side_of_the_decay():
    schedule = Schedule(ScheduleConfig(warmup_steps=2, decay_ratio=0.5), 100)
    for step, total in [(10, 60), (25, 50), (30, 48), (40, 52)]:
        before = [schedule.falling(i) for i in range(step)]
        schedule.retotal(step, total)
        assert [schedule.falling(i) for i in range(step)] == before


def rows_with(rows: list[dict], key: str) -> list[dict]:
    return [row for row in rows if key in row]


def test_a_non_finite_step_is_skipped_and_many_stop_the_run(tmp_path):
    engine = accelerator()
    training = prepare(fresh(), config(), engine)
    train_step(training, batches(0, BatchSplit(8, 8)), 1.0, 1.0)
    before = gather_state(training.model, training.optimizer)
    next_batch = batches(1, BatchSplit(8, 8))
    norm_weight = training.model.trunk.norm.weight
    kept = norm_weight.detach().clone()
    norm_weight.data.fill_(float("nan"))
    loss, norm = train_step(training, next_batch, 1.0, 1.0)
    norm_weight.data.copy_(kept)
    assert loss != loss and norm != norm
    after = gather_state(training.model, training.optimizer)
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)

    poisoned = fresh()
    with torch.no_grad():
        poisoned.trunk.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="muon_lr"):
        run(tmp_path, config(max_steps=50, evaluate_every=100), model=poisoned)


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "truncate":
        file.write_bytes(data[:-1])
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damage_to_any_file_is_found_and_the_previous_checkpoint_is_used(how, tmp_path):
    newest = checkpoint(tmp_path)
    files = [file.relative_to(newest) for file in newest.rglob("*") if file.is_file()]
    assert {"manifest.json", "state.json", "optimizer.safetensors"} < {str(file) for file in files}
    for file in files:
        original = (newest / file).read_bytes()
        damage(newest / file, how)
        lines = []
        assert find_damage(newest) is not None
        found = latest_checkpoint(tmp_path, lines.append)
        assert found != newest and str(file) in lines[0]
        (newest / file).write_bytes(original)
    assert latest_checkpoint(tmp_path, print) == newest


def test_no_intact_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    checkpoint(tmp_path)
    for directory in (tmp_path / "checkpoints").glob("step-*"):
        (directory / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        run(tmp_path, config())


def test_a_failed_save_leaves_nothing_behind_and_the_old_checkpoint_intact(tmp_path, monkeypatch, capsys):
    newest = checkpoint(tmp_path)
    before = {path: path.read_bytes() for path in newest.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mini_llm.engine.checkpoint.format.save_tensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        run(tmp_path, config(max_steps=12))
    assert "Training continues" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in newest.rglob("*") if path.is_file()} == before
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


def test_the_state_of_an_earlier_release_loads(tmp_path):
    """Earlier releases named the state of the spike monitor "anomalies"."""
    newest = checkpoint(tmp_path)
    state, manifest = (json.loads((newest / name).read_text()) for name in ("state.json", "manifest.json"))
    losses = state["spikes"]["losses"]
    state["anomalies"] = state.pop("spikes")
    (newest / "state.json").write_text(json.dumps(state))
    (newest / "manifest.json").unlink()
    write_manifest(newest, {key: manifest[key] for key in manifest.keys() - {"version", "files", "sha256"}})
    run(tmp_path, config(max_steps=12))
    resumed = json.loads((latest_checkpoint(tmp_path, print) / "state.json").read_text())
    assert len(losses) == 8 and resumed["spikes"]["losses"][:8] == losses


def test_checkpoints_hold_no_pickle(tmp_path):
    newest = checkpoint(tmp_path)
    assert {file.suffix for file in newest.rglob("*") if file.is_file()} == {".json", ".safetensors"}
    moments = load_file(newest / "optimizer.safetensors")
    assert any(key.endswith("/momentum_buffer") for key in moments) and any(key.endswith("/exp_avg") for key in moments)


def test_time_used_before_training_counts_in_the_budget(tmp_path):
    with RunDirectory(tmp_path) as directory:
        budget = StepBudget(directory, config(budget="60s"), 1.0, accelerator(), seconds_used=50.0)
    assert 50 <= budget.elapsed < 60
    budget.resume(3, 20.0)
    assert 70 <= budget.elapsed < 80


def test_a_budget_shorter_than_one_evaluation_has_one_evaluation(tmp_path):
    with RunDirectory(tmp_path) as directory:
        settings = config(max_steps=None, evaluate_every=None, budget="5s")
        budget = StepBudget(directory, settings, 1e3, accelerator(), 1.0)
    for _ in range(2):
        budget.step_took(0.1)
    assert budget.review(2)
    # The run ends at once: the last evaluation takes all the time that is left.
    assert budget.total == 2


def test_a_plan_without_a_budget_does_not_depend_on_kills(tmp_path):
    plans = []
    for resumed_at in (None, 1):
        with RunDirectory(tmp_path / str(resumed_at)) as directory:
            budget = StepBudget(directory, config(max_steps=40), 1.0, accelerator())
            budget.step_took(0.1)
            assert budget.review(12)
            if resumed_at is not None:
                StepBudget(directory, config(max_steps=40), 1.0, accelerator()).resume(resumed_at, 5.0)
        plans.append((tmp_path / str(resumed_at) / "plan.json").read_bytes())
    assert plans[0] == plans[1]
