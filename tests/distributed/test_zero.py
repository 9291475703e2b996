"""Muon and AdamW on two processes, under DDP and DeepSpeed ZeRO 1, 2, 3, match one process: losses, norms, states."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.equivalence.ranks import BOUNDS, CLIP, LAYOUTS

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict:
    """What tests/distributed/zero_worker.py reports on one process and on two, merged."""
    folder = tmp_path_factory.mktemp("zero")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    seen = {}
    for processes in (1, 2):
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"] if processes == 2 else []
        out = folder / f"{processes}.json"
        command = [sys.executable, "-m", *launcher, "tests.distributed.zero_worker", str(out)]
        result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        seen |= json.loads(out.read_text())
        seen[f"output {processes}"] = result.stdout
    return seen


def losses(steps: list) -> list[float]:
    return [loss for loss, _ in steps]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_equal_one_process(runs, layout, optimizer, precision):
    expected, seen = runs[f"{optimizer} {precision}"], runs[f"{layout} {optimizer} {precision}"]
    assert losses(seen) == pytest.approx(losses(expected), rel=BOUNDS[precision])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_divided_by_the_accumulation_only_once(runs, layout, optimizer):
    """Both optimizers ignore a gradient's scale, so its norm is compared: four micro-batches, or two on each rank."""
    norms = [norm for _, norm in runs[f"{layout} {optimizer} fp32"]]
    assert norms == pytest.approx([norm for _, norm in runs[f"{optimizer} fp32"]], rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clipping_affects_gradients_under_muon(runs, layout):
    """Clipping changes the momentum, so the losses differ without it; with it they equal those of one process."""
    clipped = runs["muon fp32"]
    assert all(norm > CLIP for _, norm in clipped)
    assert max(abs(a - b) for a, b in zip(losses(clipped), losses(runs["unclipped"]), strict=True)) > 1e-3
    assert losses(runs[f"{layout} muon fp32"]) == pytest.approx(losses(clipped), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_launch_has_the_intended_backend_and_kind(runs, layout):
    """On a CPU without a named backend, Accelerate sees two DeepSpeed processes as one, or does not use DeepSpeed."""
    assert runs[f"{layout} backend"] == "gloo"
    assert runs[f"{layout} kind"] == ("MULTI_CPU" if layout == "DDP" else "DEEPSPEED")
    if layout != "DDP":
        assert runs[f"{layout} accumulates in"] == "torch.float32"
        assert runs[f"{layout} clips at"] == CLIP


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_muon_resumes_at_any_stage(runs, source, target):
    assert runs[f"{source} state"] < 1e-5
    expected = losses(runs["muon fp32"])[4:]
    assert losses(runs[f"{source} to {target}"]) == pytest.approx(expected, rel=1e-5)


def test_the_state_of_another_optimizer_is_refused(runs):
    assert "momentum_buffer" in runs["refused"] and "exp_avg" in runs["refused"] and "optim.name" in runs["refused"]


def test_zero3_weights_are_written_tensor_by_tensor(runs):
    assert runs["streamed"]["files"] > 3 and runs["streamed"]["gap"] == 0


def test_weights_gathered_from_16_bit_are_the_fp32_master_weights(runs):
    assert runs["16 bit"]["beyond"] > 0.5
    assert runs["16 bit"]["loss"] == pytest.approx(losses(runs["muon bf16"])[-1], rel=2e-2)


def test_one_rank_prints_the_effective_configuration(runs):
    lines = [line for line in runs["output 2"].splitlines() if line.startswith("DeepSpeed configuration")]
    starts = 3 * 4 + 4 * 3 + 3
    assert len(lines) == starts
    assert json.loads(lines[0].split(": ", 1)[1])["zero_optimization"]["stage"] == 1
    assert "DeepSpeed configuration" not in runs["output 1"]
