"""Run directories: locked by one live run, bound to a configuration, recorded without secrets, written atomically."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.environment import redact
from mini_llm.engine.run.files import write_atomic
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-0123456789abcdef"
OFFLINE = TrackingConfig(wandb="offline")
CONFIG = {"optim": {"lr": 0.001}, "sources": ["a", "b"], "tracking": {"wandb": "offline"}}


def test_a_failed_atomic_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_atomic(tmp_path / "a", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_live_run_locks_its_directory_and_a_killed_one_does_not(tmp_path):
    code = (
        "import os, sys, time\nfrom mini_llm.engine.run.directory import RunDirectory\n"
        "run = RunDirectory(sys.argv[1])\n"
        "if not os.fork(): print(os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(ConfigError, match=f"process {process.pid} on .*RUN="):
            RunDirectory(tmp_path / "run")
        RunDirectory(tmp_path / "run", main_process=False).close()
        process.kill()
        process.wait()
        # A worker forked by the run is still alive, and lock.json still names the run.
        with RunDirectory(tmp_path / "run"), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            RunDirectory(tmp_path / "run")
        RunDirectory(tmp_path / "run").close()
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_directory_that_is_not_a_run_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        RunDirectory(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        assert run.compare_config(CONFIG) == []
        run.record(CONFIG)
        harmful = {**CONFIG, "optim": {"lr": 0.002}}
        assert "nothing was trained" in run.compare_config(harmful)[0]
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
        with pytest.raises(
            ConfigError, match=r"optim\.lr: 0\.001 -> 0\.002[\s\S]*RUN=another-name[\s\S]*delete"
        ) as error:
            run.compare_config({**harmful, "new": 1})
        assert "new" not in str(error.value).replace("RUN=another-name", "") and "tracking" not in str(error.value)
        (note,) = run.compare_config({**CONFIG, "tracking": {"wandb": "disabled"}})
        assert 'tracking.wandb changed: "offline" -> "disabled"' in note
        (note,) = run.compare_config(harmful, harmless=["optim.lr"])
        assert "optim.lr changed" in note
        assert run.compare_config(CONFIG) == []


def test_what_a_killed_writer_left_is_removed_wherever_it_lies(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        run.record(CONFIG)
    places = [run.path, run.path / "tables", run.path / "teacher" / "0", run.path / "model" / "linear" / "1"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / ".linear.safetensors.tmp-29453").write_text("half")
        (place / "linear.safetensors").write_text("whole")
    sync = run.path / "wandb" / "run-1" / ".file.tmp-1"
    sync.parent.mkdir(parents=True)
    sync.write_text("W&B's own")
    with RunDirectory(tmp_path / "run"):
        assert [path for path in run.path.rglob(".*tmp-*") if path != sync] == []
        assert all((place / "linear.safetensors").read_text() == "whole" for place in places) and sync.exists()


def test_a_run_of_an_older_version_knows_fewer_settings(tmp_path):
    """Such a run goes on; a longer list and a section that was null are changes as before."""
    old = {**CONFIG, "pairs": None, "sources": [{"path": "a"}]}
    with RunDirectory(tmp_path / "run") as run:
        run.record(old)
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
        (note,) = run.compare_config({**old, "task": "auto"})
        assert 'task is a setting of a newer version: "auto"' in note
        for change in ({"pairs": {"path": "b"}}, {"sources": [{"path": "a"}, {"path": "b"}]}):
            with pytest.raises(ConfigError, match="not set"):
                run.compare_config({**old, **change})


def test_a_finished_run_is_marked_as_finished(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        assert run.finished is None
        run.finish({"accuracy": 0.75})
    again = RunDirectory(tmp_path / "run", main_process=False)
    assert again.finished["scores"] == {"accuracy": 0.75}
    assert "accuracy 0.75" in again.describe_finished() and "Nothing to do" in again.describe_finished()


def test_other_ranks_write_nothing(tmp_path):
    run = RunDirectory(tmp_path / "run", main_process=False)
    run.record(CONFIG)
    run.finish({})
    run.close()
    with Tracker(tmp_path / "run", OFFLINE, "pretrain", {}, main_process=False) as tracker:
        tracker.log(1, {"a": 1.0}, {"b": 1.0})
        tracker.table("t", ["a"], [[1]])
        tracker.summary({})
        tracker.artifact("a", "model", tmp_path)
    assert not (tmp_path / "run").exists()


def test_commands_are_appended_and_the_environment_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", CANARY)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pretrain", "a b.yaml", f"x={CANARY}", "hub.token=abc"])
    with RunDirectory(tmp_path / "run") as run:
        run.record(CONFIG)
        run.record(CONFIG)
    lines = (tmp_path / "run/command.txt").read_text().splitlines()
    assert lines[1] == lines[3] == "python -m pretrain 'a b.yaml' 'x=***' 'hub.token=***'"
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["packages"]["torch"] and environment["cores"] >= 1 and environment["memory_gb"] > 0
    assert CANARY not in "".join(path.read_text() for path in (tmp_path / "run").iterdir())


def test_redact_keeps_text_without_secrets():
    text = "tokenizer=runs/tokenizer num_key_value_heads=4 https://host/a@b monkey=1"
    assert redact(text, []) == text
    assert redact("hf_" + "a1B2" * 8, []) == "***"
