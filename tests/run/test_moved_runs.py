"""Runs go on when they or their data have moved, and are refused when the data have changed."""

import json
import os
import shutil

import pytest

from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.liveness import is_live


def config_of(path, **changes):
    return {"run": None, "corpus": {"sources": [{"path": str(path), "text": "text"}]}, "max_steps": 5, **changes}


@pytest.fixture
def started(tmp_path):
    """A run with a checkpoint, trained on a.txt."""
    (tmp_path / "a.txt").write_text("some text")
    with RunDirectory(tmp_path / "runs/one") as run:
        run.record(config_of(tmp_path / "a.txt"), "pretrain")
    (tmp_path / "runs/one/checkpoints/step-00000002").mkdir(parents=True)
    (tmp_path / "runs/one/metrics.jsonl").write_text('{"step": 1}\n')
    return tmp_path


def test_a_renamed_run_and_moved_data_go_on(started):
    shutil.move(started / "runs/one", started / "runs/two")
    shutil.move(started / "a.txt", started / "b.txt")
    with RunDirectory(started / "runs/two") as run:
        notes = run.compare_config(config_of(started / "b.txt", run="two"))
        assert len(notes) == 1, notes
        note = notes[0]
        assert "with the same content" in note
        run.record(config_of(started / "b.txt", run="two"))
        assert run.compare_config(config_of(started / "b.txt", run="two")) == []


def test_changed_bytes_are_refused_under_any_name(started):
    (started / "b.txt").write_text("some tent")
    with RunDirectory(started / "runs/one") as run:
        with pytest.raises(ConfigError, match=r"corpus\.sources\.0\.path"):
            run.compare_config(config_of(started / "b.txt"))
        stat = (started / "a.txt").stat()
        (started / "a.txt").write_text("some tent")
        os.utime(started / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(CheckpointError, match=r"data_fingerprint was .* RUN=new-name"):
            run.compare_config(config_of(started / "a.txt"))
        run.finish({})
        with pytest.raises(CheckpointError, match="has changed"):
            run.compare_config(config_of(started / "a.txt"))


def test_a_run_of_an_earlier_release_compares_what_is_there(started):
    (started / "runs/one/inputs.json").unlink()
    shutil.copy(started / "a.txt", started / "b.txt")
    with RunDirectory(started / "runs/one") as run:
        assert run.compare_config(config_of(started / "a.txt")) == []
        assert "same content" in run.compare_config(config_of(started / "b.txt"))[0]
        (started / "a.txt").unlink()  # the checkpoint has a fingerprint of the data
        assert run.compare_config(config_of(started / "b.txt")) == []
        with pytest.raises(ConfigError):
            run.compare_config({**config_of(started / "b.txt"), "max_steps": 9})


def test_new_keys_of_a_source_are_no_change(started):
    config = config_of(started / "a.txt")
    config["corpus"]["sources"][0]["encoding"] = None
    with RunDirectory(started / "runs/one") as run:
        assert run.compare_config(config) == []


def test_other_code_and_kernels_are_said_and_recorded(started, monkeypatch):
    path = started / "runs/one/environment.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "code": "0123", "cpu": "another one", "kernels": "compiled"}))
    described = {**before, "kernels": "none"}
    monkeypatch.setattr("mini_llm.engine.run.directory.describe_environment", lambda: described)
    with RunDirectory(started / "runs/one") as run:
        (note,) = run.compare_config(config_of(started / "a.txt"))
        assert all(word in note for word in ("other code", "another processor", "kernels", "last bits"))
        run.record(config_of(started / "a.txt"))
        assert run.compare_config(config_of(started / "a.txt")) == []
    (change,) = json.loads(path.read_text())["changes"]
    assert change["kernels"] == "compiled -> none" and "time" in change


def test_a_failed_start_leaves_no_run_and_a_failed_step_does(tmp_path):
    for steps in (0, 1):
        with pytest.raises(RuntimeError), RunDirectory(tmp_path / "runs/one") as run:
            run.record(config_of(tmp_path / "a.txt"))
            (run.path / "data.json").write_text("{}")
            if steps:
                (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
            raise RuntimeError
        assert (tmp_path / "runs/one").exists() == bool(steps)


def test_a_killed_run_is_not_live(tmp_path):
    with RunDirectory(tmp_path / "one") as run:
        assert is_live(run.path)
        owner = json.loads((run.path / "lock.json").read_text())
        for change in ({"pid": 2**22 + 1}, {"since": "2001-01-01T00:00:00+00:00"}, {"pid": None}):
            (run.path / "lock.json").write_text(json.dumps(owner | change))
            assert not is_live(run.path)
        (run.path / "lock.json").write_text(json.dumps(owner | {"host": "elsewhere"}))
        assert is_live(run.path)
    assert not is_live(run.path)
