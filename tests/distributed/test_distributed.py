"""Two processes give the losses of one process with twice the accumulation: DDP, and DeepSpeed ZeRO 1, 2, 3 on CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 20
SETTINGS = [
    f"max_steps={STEPS}",
    "budget=null",
    "global_batch_size=8",
    "micro_batch_size=2",
    "evaluate_every=10",
    "save_every=10",
    "sizes.hidden_size=32",
    "sizes.num_hidden_layers=2",
    "sizes.num_attention_heads=2",
    "sizes.max_position_embeddings=32",
    "vocab_size=320",
    "optim.name=adamw",
    "runtime.precision=fp32",
    "runtime.device=cpu",
    "tracking.wandb=disabled",
]
REPOSITORY = Path(__file__).parents[2]


def launch(
    folder: Path, run: str, *settings: str, processes: int = 1, stage: int | None = None, file: str | None = None
) -> subprocess.CompletedProcess:
    """`python -m pretrain` in `folder`, under torchrun for two processes, with DeepSpeed for a stage.

    file: of configs/accelerate/, for `accelerate launch`.
    """
    launcher = [sys.executable, "-m"]
    if file is not None:
        launcher += ["accelerate.commands.launch", "--config_file", str(REPOSITORY / "configs" / "accelerate" / file)]
        launcher += ["--main_process_port", "0", "-m"]
    elif processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    if file is None:
        environment["ACCELERATE_USE_DEEPSPEED"] = str(stage is not None).lower()
        environment |= {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)} if stage is not None else {}
    command = [*launcher, "pretrain", "--data", "text.txt", f"run={run}", *SETTINGS, *settings]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


def losses(folder: Path, run: str, key: str = "train/loss") -> list[float]:
    rows = [json.loads(line) for line in (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a text, where one process has trained runs/one and runs/one-mlm."""
    folder = tmp_path_factory.mktemp("distributed")
    words = [f"word{i * i % 97} " for i in range(6000)]
    (folder / "text.txt").write_text("".join(words))
    for run, settings in (("one", []), ("one-mlm", ["--model", "mlm"])):
        result = launch(folder, run, *settings)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("model", ["gpt", "mlm"])
@pytest.mark.parametrize("stage", [None, 1, 2, 3])
def test_two_processes_equal_one(folder, stage, model):
    if model == "mlm" and stage in (1, 2):
        pytest.skip("the objective and the sharding are independent; one stage is enough")
    run = f"{model}-{stage}"
    # Both launchers, each with and without DeepSpeed.
    file = {("gpt", 2): "zero2.yaml", ("mlm", None): "ddp-cpu.yaml"}.get((model, stage))
    result = launch(folder, run, "--model", model, "tracking.wandb=offline", processes=2, stage=stage, file=file)
    assert result.returncode == 0, result.stderr
    assert len(list((folder / "runs" / run / "wandb").glob("offline-run-*"))) == 1
    reference = "one" if model == "gpt" else "one-mlm"
    for key in ("train/loss", "val/loss"):
        expected = losses(folder, reference, key)
        assert len(expected) == (STEPS if key == "train/loss" else 2)
        assert losses(folder, run, key) == pytest.approx(expected, rel=1e-5)
    # A schedule that Accelerate knew of would be stepped once for each process.
    assert losses(folder, run, "train/lr") == losses(folder, reference, "train/lr")
    assert expected[-1] < expected[0]
    assert len(list((folder / "runs" / run).glob("checkpoints/step-*"))) == 2


def test_a_run_moves_between_processes_and_stages(folder):
    """Ten steps on two processes under ZeRO-3, then ten on one without DeepSpeed, in larger micro-batches."""
    import shutil

    run = folder / "runs" / "moving"
    result = launch(folder, "moving", processes=2, stage=3)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    shutil.rmtree(run / "model")
    (run / "finished.json").unlink()
    result = launch(folder, "moving", "micro_batch_size=4", "runtime.gradient_checkpointing=1")
    assert result.returncode == 0, result.stderr
    assert "micro_batch_size changed: 2 -> 4" in result.stderr
    assert "resuming from step 10" in result.stdout + result.stderr
    assert losses(folder, "moving") == pytest.approx(losses(folder, "one"), rel=1e-5)


def test_a_rank_killed_during_a_sharded_save_costs_only_the_steps_since_the_last_one(folder, monkeypatch):
    """Under ZeRO-3 the second rank dies after writing its shard of the last checkpoint; the same command resumes."""
    run = folder / "runs" / "sharded"
    # The fourth directory: the best weights of step 10, step 10, the best weights of step 20, step 20.
    monkeypatch.setenv("LLM_FAULT", "save-shard:1:4=kill")
    result = launch(folder, "sharded", "checkpoint=sharded", processes=2, stage=3)
    assert result.returncode != 0
    assert [path.name for path in run.glob("checkpoints/step-*")] == ["step-00000010"]
    monkeypatch.delenv("LLM_FAULT")
    result = launch(folder, "sharded", "checkpoint=sharded", processes=2, stage=3)
    assert result.returncode == 0, result.stderr
    assert "resuming from step 10" in result.stdout + result.stderr
    assert losses(folder, "sharded") == pytest.approx(losses(folder, "one"), rel=1e-5)
    assert losses(folder, "sharded", "val/loss") == pytest.approx(losses(folder, "one", "val/loss"), rel=1e-5)
    assert not [path for path in run.rglob("*") if path.name.startswith(".tmp") or path.suffix == ".pt"]
    weights = [load_file(folder / "runs" / name / "model" / "model.safetensors") for name in ("sharded", "one")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-4) for key in weights[0])


def test_a_user_error_is_one_message_on_two_processes(folder):
    result = launch(folder, "bad", "global_batch_size=3", "micro_batch_size=null", processes=2)
    assert result.returncode != 0
    assert "global_batch_size" in result.stderr


def test_gathered_zero3_weights_are_complete(folder):
    from mini_llm.model import load_model

    model = load_model(folder / "runs" / "one" / "model")
    assert all(torch.isfinite(parameter).all() and parameter.numel() for parameter in model.parameters())
