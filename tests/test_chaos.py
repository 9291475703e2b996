"""The short fault campaign, and the parts of saving that it relies on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.preflight import SMALL_FILES, check_space, checkpoint_bytes
from mini_llm.engine.run.fault_points import InjectedError, fault_point
from mini_llm.engine.run.files import atomic_directory, remove_leftovers
from mini_llm.engine.settings import OptimConfig
from mini_llm.engine.step import prepare
from tests.loops import accelerator, checkpoint, config, final_files, fresh, run

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_short_fault_campaign(tmp_path):
    """Runs are killed, checkpoints damaged, disks filled, broken savers found. `make chaos` runs the whole campaign."""
    command = [sys.executable, "-m", "chaos", "--quick", "--only", "short", "--output", str(tmp_path / "found.json")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    found = {str(row["fault"]): row for row in json.loads((tmp_path / "found.json").read_text())["faults"]}
    assert result.returncode == 0, result.stdout[-3000:]
    assert {"3", "4", "13", "15", "B1", "B4"} <= set(found)
    assert all(row["result"] in ("as expected", "not here") for row in found.values())
    assert found["4"]["result"] == found["13"]["result"] == "as expected"


@pytest.mark.parametrize(
    "setting, raised",
    [
        ("here=raise", InjectedError),
        ("here=enospc", OSError),
        ("here:0=raise", InjectedError),
        ("here:1=raise", None),
        ("there=raise", None),
        ("here::3=raise", None),
        ("here=nonsense", ValueError),
        ("", None),
    ],
)
def test_a_fault_point_fails_where_it_is_configured_to(setting, raised, monkeypatch):
    monkeypatch.setenv("LLM_FAULT", setting)
    monkeypatch.setattr("mini_llm.engine.run.fault_points._passed", {})
    if raised is None:
        fault_point("here")
        fault_point("here")
        return
    with pytest.raises(raised):
        fault_point("here")
    if raised is not ValueError:
        fault_point("here")


def test_a_directory_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_directory(target) as directory:
            (directory / "a").write_text(content)
        assert (target / "a").read_text() == content and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setenv("LLM_FAULT", "directory-synced=enospc")
    monkeypatch.setattr("mini_llm.engine.run.fault_points._passed", {})
    with pytest.raises(OSError, match="No space"), atomic_directory(target) as directory:
        (directory / "b").write_text("newer")
    assert [path.name for path in target.iterdir()] == ["a"] and len(list(tmp_path.iterdir())) == 1


def test_only_leftovers_of_killed_writers_are_removed(tmp_path):
    kept = ["model", ".lock", ".tmp", "step-1", ".gitignore", ".tmp-mine"]
    gone = [".tmp-step-00000003-0123abcd", ".tmp-model-0123abcd-old"]
    for name in [*kept, *gone, ".tmp-best-00000002-0123abcd-old"]:
        (tmp_path / name).mkdir()
    (tmp_path / ".config.yaml.tmp-123").touch()
    remove_leftovers(tmp_path)
    # One that was being replaced, when the system cannot exchange two directories at once, is put back.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "best-00000002"])


def test_too_little_disk_space_is_an_error_before_training(tmp_path, monkeypatch):
    training = prepare(fresh(), config(), accelerator())
    whole, model = checkpoint_bytes(training)
    usage = type("Usage", (), {"free": whole + model - 1})
    monkeypatch.setattr("mini_llm.engine.preflight.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"not enough disk space.*keep_last=2"):
        check_space(tmp_path, training, 2)
    usage.free += 1
    assert "saves will fail" in check_space(tmp_path, training, 2)
    usage.free = 10 * whole
    assert check_space(tmp_path, training, 2) is None


def test_the_size_of_a_checkpoint_is_predicted(tmp_path):
    newest = checkpoint(tmp_path)
    found = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    foreseen, _ = checkpoint_bytes(prepare(fresh(), config(), accelerator()))
    assert 0.8 * (foreseen - SMALL_FILES) < found < foreseen


def test_a_run_killed_after_its_early_stop_does_not_continue_training(tmp_path, monkeypatch):
    still = OptimConfig(lr=0, muon_lr=0)
    settings = config(max_steps=200, evaluate_every=1, save_every=50, patience=3, load_best=False, optim=still)
    straight = run(tmp_path / "straight", settings)
    monkeypatch.setenv("LLM_FAULT", "export=raise")
    monkeypatch.setattr("mini_llm.engine.run.fault_points._passed", {})
    with pytest.raises(InjectedError):
        run(tmp_path / "killed", settings)
    # The scores are those of the last weights on the second launch too, which makes no step.
    assert run(tmp_path / "killed", settings) == straight
    assert final_files(tmp_path / "killed") == final_files(tmp_path / "straight")


def test_a_run_survives_the_loss_of_its_best_weights(tmp_path, capsys):
    checkpoint(tmp_path)
    for best in (tmp_path / "checkpoints").glob("best-*"):
        shutil.rmtree(best)
    run(tmp_path, config(max_steps=12))
    assert "resuming without the best weights" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_another_tokenizer_or_batch_size_is_refused(tmp_path):
    facts = {"tokenizer_sha256": "a" * 64, "data_fingerprint": "b", "global_batch_size": 8}
    run(tmp_path, config(), metadata=facts)
    for name in facts:
        with pytest.raises(CheckpointError, match=name):
            run(tmp_path, config(max_steps=12), metadata={**facts, name: "c"})
    run(tmp_path, config(max_steps=12), metadata=facts)
    assert os.listdir(tmp_path / "checkpoints")
