"""The loop: what is learned does not depend on how the work is cut, stopped or resumed."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from mini_llm.engine.batch import IGNORE_INDEX, Share
from mini_llm.engine.budget import Pace
from mini_llm.engine.checkpoint.format import find_damage, latest_checkpoint
from mini_llm.engine.distributed.zero import gather_state
from mini_llm.engine.errors import CheckpointError, NonFiniteError
from mini_llm.engine.evaluate import evaluate_loss
from mini_llm.engine.loop import train
from mini_llm.engine.loss import cross_entropy_sum
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.machine import compiler
from mini_llm.engine.run.signals import Interrupted
from mini_llm.engine.run.tracker import Tracker
from mini_llm.engine.schedule import Schedule
from mini_llm.engine.settings import LoopConfig, OptimConfig, RuntimeConfig, ScheduleConfig, TrackingConfig
from mini_llm.engine.step import prepare, train_step
from mini_llm.model import CausalLM
from tests.model.test_model import VOCABULARY, decoder

LENGTH = 12


def accelerator(accumulation: int = 1) -> Accelerator:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return Accelerator(cpu=True, gradient_accumulation_steps=accumulation)


def config(**changes) -> LoopConfig:
    fields = {
        "max_steps": 8,
        "evaluate_every": 4,
        "save_every": 3,
        "runtime": RuntimeConfig(precision="fp32", device="cpu"),
        "schedule": ScheduleConfig(warmup_steps=2),
        "optim": OptimConfig(lr=1e-2),
    }
    return LoopConfig(**{**fields, **changes})


def rows(step: int, count: int = 8) -> torch.Tensor:
    """Sequences that count upwards, of which a part of the labels is left out at random."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(VOCABULARY, (count, 1), generator=generator)
    return (start + torch.arange(LENGTH + 1)) % VOCABULARY


def batches(step: int, share: Share) -> list[dict[str, torch.Tensor]]:
    ids = rows(step, share.global_batch_size)
    labels = ids[:, 1:].clone()
    drop = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1000 + step)) < 0.4
    labels[drop] = IGNORE_INDEX
    parts = zip(share.split(ids[:, :-1].numpy()), share.split(labels.numpy()), strict=True)
    return [
        {"input_ids": torch.from_numpy(x).contiguous(), "labels": torch.from_numpy(y).contiguous()} for x, y in parts
    ]


def fresh(seed: int = 0) -> CausalLM:
    torch.manual_seed(seed)
    return CausalLM(decoder(dropout=0.1))


def run(
    path: Path, settings: LoopConfig, share: Share = Share(8, 8), make=batches, model=None, evaluate=None, **options
):
    """One launch of a run; returns the scores."""
    engine = accelerator(share.accumulation)

    def held_out_loss(model) -> dict[str, float]:
        held_out = [{"input_ids": rows(9999)[:, :-1], "labels": rows(9999)[:, 1:]}]
        return {"val/loss": evaluate_loss(model, held_out, engine)["loss"]}

    with (
        RunDirectory(path) as directory,
        Tracker(path, TrackingConfig(wandb="disabled"), "pretrain", {}) as tracker,
    ):
        return train(
            model or fresh(),
            lambda step: make(step, share),
            evaluate or held_out_loss,
            settings,
            engine,
            directory,
            tracker,
            lambda directory: None,
            **options,
        )


def final_files(path: Path) -> dict[str, bytes]:
    last = sorted((path / "checkpoints").glob("step-*"))[-1]
    files = {"model": path / "model" / "model.safetensors", "optimizer": last / "optimizer.safetensors"}
    return {name: file.read_bytes() for name, file in files.items()} | {
        "metrics": (path / "metrics.jsonl").read_bytes()
    }


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_compiled_blocks_train_as_they_are_written(tmp_path):
    losses = []
    for name, compile in (("eager", False), ("compiled", True)):
        torch.manual_seed(0)
        settings = config(max_steps=4, runtime=RuntimeConfig(precision="fp32", device="cpu", compile=compile))
        model = CausalLM(decoder(dropout=0.0))
        # Without an evaluation, which would be compiled too.
        run(tmp_path / name, settings, model=model, evaluate=lambda model: {"val/loss": 1.0})
        records = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([record["train/loss"] for record in records if "train/loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 4


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_accumulated_equals_large_batch(name, tmp_path):
    """With unequal label counts per micro-batch, which a mean of means would get wrong."""
    results = []
    for micro in (8, 2, 1):
        share = Share(8, micro)
        engine = accelerator(share.accumulation)
        model = CausalLM(decoder())
        torch.manual_seed(0)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        training = prepare(model, config(optim=OptimConfig(name=name)), engine)
        losses = [train_step(training, batches(step, share), 1.0, 1.0)[0] for step in range(3)]
        results.append((losses, gather_state(training.model, training.optimizer)[0]))
    for losses, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        # Muon's iteration in half precision amplifies the last bits of its input.
        tolerance = 1e-5 if name == "adamw" else 5e-3
        assert all((weights[k] - results[0][1][k]).abs().max() < tolerance for k in weights)


def test_gradients_are_those_of_the_plain_mean():
    engine = accelerator(4)
    model, reference = fresh().eval(), fresh().eval()
    training = prepare(model, config(), engine)
    training.model.eval()
    captured = {}
    training.optimizer.step = lambda: captured.update({n: p.grad.clone() for n, p in model.named_parameters()})
    loss, norm = train_step(training, batches(0, Share(8, 2)), 1.0, 0.0)
    whole = batches(0, Share(8, 8))[0]
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
def test_resumed_equals_uninterrupted_to_the_bit(name, stop_at, tmp_path):
    settings = config(optim=OptimConfig(name=name, lr=1e-2))
    run(tmp_path / "straight", settings)

    def interrupted(step: int, share: Share):
        if step == stop_at:
            raise KeyboardInterrupt
        return batches(step, share)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", settings, make=interrupted)
    # The model handed in on the second launch is another one: all of it comes from the checkpoint.
    run(tmp_path / "resumed", settings, model=fresh(0 if stop_at < 3 else 5))
    assert final_files(tmp_path / "resumed") == final_files(tmp_path / "straight")


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path):
    run(tmp_path / "straight", config())

    def killed(step: int, share: Share):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(step, share)

    with pytest.raises(Interrupted) as stopped:
        run(tmp_path / "stopped", config(), make=killed)
    assert stopped.value.exit_code == 143
    assert latest_checkpoint(tmp_path / "stopped", print).name == "step-00000005"
    run(tmp_path / "stopped", config())
    assert final_files(tmp_path / "stopped") == final_files(tmp_path / "straight")


def test_it_learns_and_keeps_the_best(tmp_path):
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
    """Time that passes only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.mark.parametrize("slower", [1.0, 2.5])
def test_a_budget_bounds_the_steps(slower, tmp_path, monkeypatch):
    """A step takes 50 ms, an evaluation 200 ms; half-way through the machine may become slower."""
    clock = Clock()
    monkeypatch.setattr("mini_llm.engine.budget.time", clock)
    monkeypatch.setattr("mini_llm.engine.loop.time", clock)
    monkeypatch.setattr("mini_llm.engine.budget.SECONDS_FOR_SAVING", 0.5)

    def timed(step: int, share: Share):
        clock.now += 0.05 * (1.0 if clock.now < 5 else slower)
        return batches(step, share)

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
def test_early_batches_last_until_the_rate_falls(stop_at, tmp_path):
    seen = []

    def noted(name):
        return lambda step, share=Share(8, 8): seen.append((step, name)) or batches(step, share)

    settings = config(schedule=ScheduleConfig(warmup_steps=2, decay_fraction=0.5))
    if stop_at:

        def interrupting(step, share=Share(8, 8)):
            if step + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return noted("early" if step < 4 else "late")(step)

        with pytest.raises(Interrupted):
            run(tmp_path, settings, make=interrupting, early_batches=interrupting)
    run(tmp_path, settings, make=noted("late"), early_batches=noted("early"))
    assert seen == [(step, "early") for step in range(4)] + [(step, "late") for step in range(4, 8)]


def test_a_step_gone_by_keeps_its_side_of_the_fall_when_the_plan_changes():
    schedule = Schedule(ScheduleConfig(warmup_steps=2, decay_fraction=0.5), 100)
    for step, total in [(10, 60), (25, 50), (30, 48), (40, 52)]:
        before = [schedule.falling(i) for i in range(step)]
        schedule.retotal(step, total)
        assert [schedule.falling(i) for i in range(step)] == before


def rows_with(rows: list[dict], key: str) -> list[dict]:
    return [row for row in rows if key in row]


def test_a_non_finite_step_is_left_out_and_many_stop_the_run(tmp_path):
    engine = accelerator()
    training = prepare(fresh(), config(), engine)
    train_step(training, batches(0, Share(8, 8)), 1.0, 1.0)
    before = gather_state(training.model, training.optimizer)
    bad = batches(1, Share(8, 8))
    norm_weight = training.model.trunk.norm.weight
    kept = norm_weight.detach().clone()
    norm_weight.data.fill_(float("nan"))
    loss, norm = train_step(training, bad, 1.0, 1.0)
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


def checkpoint(tmp_path: Path) -> Path:
    run(tmp_path, config())
    return latest_checkpoint(tmp_path, print)


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
def test_damage_to_any_file_is_found_and_the_one_before_is_taken(how, tmp_path):
    newest = checkpoint(tmp_path)
    files = [file.relative_to(newest) for file in newest.rglob("*") if file.is_file()]
    assert {"manifest.json", "state.json", "optimizer.safetensors"} < {str(file) for file in files}
    for file in files:
        original = (newest / file).read_bytes()
        damage(newest / file, how)
        said = []
        assert find_damage(newest) is not None
        found = latest_checkpoint(tmp_path, said.append)
        assert found != newest and str(file) in said[0]
        (newest / file).write_bytes(original)
    assert latest_checkpoint(tmp_path, print) == newest


def test_nothing_intact_is_an_error_not_a_fresh_start(tmp_path):
    checkpoint(tmp_path)
    for directory in (tmp_path / "checkpoints").glob("step-*"):
        (directory / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        run(tmp_path, config())


def test_a_failed_save_leaves_nothing_behind_and_the_old_one_whole(tmp_path, monkeypatch, capsys):
    newest = checkpoint(tmp_path)
    before = {path: path.read_bytes() for path in newest.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mini_llm.engine.checkpoint.format.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        run(tmp_path, config(max_steps=12))
    assert "The training goes on" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in newest.rglob("*") if path.is_file()} == before
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


def test_checkpoints_hold_no_pickle(tmp_path):
    newest = checkpoint(tmp_path)
    assert {file.suffix for file in newest.rglob("*") if file.is_file()} == {".json", ".safetensors"}
    moments = load_file(newest / "optimizer.safetensors")
    assert any(key.endswith("/momentum_buffer") for key in moments) and any(key.endswith("/exp_avg") for key in moments)


def test_time_that_was_spent_before_counts_in_the_budget(tmp_path):
    with RunDirectory(tmp_path) as directory:
        pace = Pace(directory, config(budget="60s"), 1.0, accelerator(), spent=50.0)
    assert 50 <= pace.elapsed < 60
    pace.resume(3, 20.0)
    assert 70 <= pace.elapsed < 80


def test_a_budget_that_one_evaluation_outlasts_has_one_evaluation(tmp_path):
    with RunDirectory(tmp_path) as directory:
        pace = Pace(directory, config(max_steps=None, evaluate_every=None, budget="5s"), 1e3, accelerator(), 1.0)
    for _ in range(2):
        pace.step_took(0.1)
    assert pace.review(2)
    assert pace.evaluate_every == pace.total < 100
