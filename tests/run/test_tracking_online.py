"""W&B online, against a local server: one run across resumes, and failures of the server change no training."""

import json
import sys
import threading
import time

import pytest

import mini_llm.engine.tracking.wandb_mirror as mirror_module
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.engine.tracking.transaction_log import read_records
from tests import loops
from tests.wandb_server import Server

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def forget_service():
    """The `server` fixture restores the address of a service process of W&B that has ended meanwhile."""
    yield
    for name in [name for name in mirror_module.os.environ if name.endswith("WANDB_SERVICE")]:
        del mirror_module.os.environ[name]
    forget_server()


@pytest.fixture
def server(request, monkeypatch, tmp_path):
    server = Server(request.param)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [name for name in mirror_module.os.environ if name.startswith(("WANDB_", "MINI_LLM_WANDB"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(mirror_module, "_waiting", [])  # hints of earlier tests of this process
    monkeypatch.setattr(mirror_module, "INIT_TIMEOUT", 2.0)
    monkeypatch.setattr(mirror_module, "FINISH_TIMEOUT", 2.0)
    forget_server()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    forget_server()


def forget_server():
    # W&B reads the address of its server once in a process.
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def launch(directory, steps):
    with Tracker(directory, TrackingConfig(), "pretrain", {"seed": 1}) as tracker:
        tracker.rewind(steps[0] - 1)
        for step in steps:
            tracker.log(step, {"train/loss": 1 / step})


@pytest.mark.parametrize("server", ["ok"], indirect=True)
def test_two_launches_are_one_run_online(server, tmp_path, capsys):
    launch(tmp_path / "run", [1, 2])
    launch(tmp_path / "run", [3, 4])
    run_id = json.loads((tmp_path / "run/wandb.json").read_text())["id"]
    assert set(server.names("UpsertBucket")) == {run_id} == set(server.names("RunResumeStatus"))
    sent = [{"step": row["train/step"], "train/loss": row["train/loss"]} for row in server.history()]
    assert sent == read_rows(tmp_path / "run/metrics.jsonl")
    errors = capsys.readouterr().err
    assert errors.count("/runs/" + run_id) == 2 and "mini_llm sync" not in errors


@pytest.mark.parametrize("server", ["ok"], indirect=True)
def test_what_a_run_reads_and_makes_is_lineage_online(server, tmp_path):
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text("{}")
    with Tracker(tmp_path / "run", TrackingConfig(), "finetune", {}, start=tmp_path / "gpt") as tracker:
        tracker.artifact("run", "model", tmp_path / "gpt" / "config.json")
    made = [str(body["input"]) for name, body in server.asked if name == "CreateArtifact"]
    assert len(made) == 2 and all("sha256-" in each for each in made)
    assert len([name for name, _ in server.asked if name == "UseArtifact"]) == 1


@pytest.mark.parametrize("server", ["die"], indirect=True)
def test_a_server_that_dies_does_not_hold_up_the_rows_behind_an_artifact(server, tmp_path):
    (tmp_path / "gpt.json").write_text("{}")
    started = time.monotonic()
    with Tracker(tmp_path / "run", TrackingConfig(), "finetune", {}, start=tmp_path / "gpt.json") as tracker:
        tracker.log(1, {"train/loss": 1.0})
    assert time.monotonic() - started < 15, "2 s to start, 2 s to finish, and 5 s until W&B is given up"
    (log,) = (tmp_path / "run").glob("wandb/run-*/*.wandb")
    assert any(record.HasField("history") for record in read_records(log))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """What a training without W&B leaves."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    loops.run(path, loops.config())
    return loops.final_files(path)


# mode of the server: (warnings, whether the run goes online)
FAULTS = {
    "ok": ("", True),
    "slow": ("", True),
    "401": ("cannot be reached or refuses the key", False),
    "500": ("cannot be reached or refuses the key", False),
    "hang": ("cannot be reached or refuses the key", False),
    "close": ("cannot be reached or refuses the key", False),
    "die": ("could not take all rows", True),
    "late 500": ("could not take all rows", True),
}


@pytest.mark.parametrize("server", FAULTS, indirect=True)
def test_training_is_the_same_whatever_the_server_does(server, tmp_path, capsys, undisturbed):
    warning, online = FAULTS[server.mode]
    path = tmp_path / "run"
    started = time.monotonic()
    loops.run(path, loops.config(), tracking=TrackingConfig())
    assert time.monotonic() - started < 20, "init and finish wait for 2 s each here"
    assert loops.final_files(path) == undisturbed
    errors = capsys.readouterr().err
    assert errors.count("mini_llm sync") == bool(warning) and errors.count(warning) >= 1
    assert len(list(path.glob("wandb/offline-run-*"))) == (not online)
    if not warning:
        assert len(server.history()) >= len(read_rows(path / "metrics.jsonl"))
