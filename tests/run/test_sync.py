"""`mini_llm sync`: a run that was resumed offline becomes one W&B run, each step once, however often it is sent."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mini_llm.engine.errors import ConfigError, UserError
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking import sync as sync_module
from mini_llm.engine.tracking.merge import launches_of, merge
from mini_llm.engine.tracking.sync import Server as Login
from mini_llm.engine.tracking.sync import check_server, find_server, sync_runs
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.engine.tracking.transaction_log import BLOCK, HEADER, pack, read_records, unpack
from tests.wandb_server import Server

KEY = "0" * 40


@pytest.fixture(autouse=True)
def no_wandb_of_the_caller(monkeypatch, tmp_path):
    for name in [name for name in sync_module.os.environ if "WANDB" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def server(request, monkeypatch):
    """A server in the mode of the test's parameter, with the key set for it; W&B reads both once in a process."""
    server = Server(getattr(request, "param", "ok"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    forget_server()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    forget_server()


def forget_server() -> None:
    """End W&B's service, which writes the last records up to a second after a run has ended."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def launch(run: Path, first: int, last: int) -> None:
    with Tracker(run, TrackingConfig(wandb="offline"), "pretrain", {"seed": 1}) as tracker:
        tracker.rewind(first - 1)
        for step in range(first, last + 1):
            tracker.log(step, {"train/loss": 1 / step})
        tracker.table("samples", ["text"], [[f"until {last}"]], step=last)
        tracker.summary({"val/loss": float(last)})


def resumed(run: Path) -> Path:
    """A run of two launches: the second one resumes from the checkpoint of step 3."""
    (run / "config.yaml").parent.mkdir(parents=True)
    (run / "config.yaml").touch()
    launch(run, 1, 5)
    launch(run, 4, 8)
    forget_server()
    return run


@pytest.mark.parametrize("sizes", [[0], [5, 0, 7], [BLOCK - 7 - len(HEADER)], [BLOCK - 20, 9, 3], [200_000, 1]])
def test_transaction_logs_read_back(sizes):
    messages = [bytes([number % 251]) * size for number, size in enumerate(sizes, 1)]
    log = pack(messages)
    assert list(unpack(log)) == messages
    assert list(unpack(log[:-1])) == messages[:-1], "a torn record is left out"
    with pytest.raises(ValueError, match="not a transaction log"):
        list(unpack(b"something else"))


@pytest.mark.slow
def test_our_logs_are_wandb_s_and_launches_merge(tmp_path):
    run = resumed(tmp_path / "gpt")
    for log in run.glob("wandb/offline-run-*/*.wandb"):
        assert pack(unpack(log.read_bytes())) == log.read_bytes()
    ((run_id, launches),) = launches_of(run).items()
    merge(launches, tmp_path / "merged")
    merged = list(read_records(tmp_path / "merged" / f"run-{run_id}.wandb"))
    kinds = [record.WhichOneof("record_type") for record in merged]
    assert (kinds.count("header"), kinds.count("run"), kinds.count("exit")) == (1, 1, 1)
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in merged
        if record.HasField("history")
    ]
    assert [row["_step"] for row in history] == list(range(9))
    rows = [{"step": row["train/step"], "train/loss": row["train/loss"]} for row in history if "train/loss" in row]
    assert rows == read_rows(run / "metrics.jsonl")
    assert [row["samples/path"] for row in history if "samples/path" in row]
    assert len(list((tmp_path / "merged").glob("files/media/table/*.json"))) == 2, "each launch had one"


@pytest.mark.slow
def test_a_resumed_run_is_sent_once_as_one_run(server, tmp_path, capsys):
    run = resumed(tmp_path / "gpt")
    run_id = json.loads((run / "wandb.json").read_text())["id"]
    capsys.readouterr()
    sync_runs([run])
    assert "2 launches" in capsys.readouterr().out
    (rows,) = server.lines.values()
    trained = [row for row in rows.values() if "train/loss" in row]
    losses = [{"step": row["train/step"], "train/loss": row["train/loss"]} for row in trained]
    assert losses == read_rows(run / "metrics.jsonl") and list(server.lines) == [run_id]
    assert set(server.names("UpsertBucket")) == {run_id}
    asked = len(server.asked)
    sync_runs([run])
    assert "nothing to send" in capsys.readouterr().out and len(server.asked) == asked
    sync_runs([run], again=True)
    assert [row["_step"] for row in rows.values()] == list(range(9))
    assert not (run / "wandb" / "sync").exists()
    launch(run, 9, 9)
    forget_server()
    sync_runs([run])
    assert rows[9]["train/step"] == 9 and "3 launches" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_wandb_does_not_take_stays_to_be_sent(server, tmp_path, capsys):
    run = resumed(tmp_path / "gpt")
    server.mode = "late 500"
    with pytest.raises(UserError, match="Nothing is lost"):
        sync_runs([run], seconds=4)
    assert not (run / "wandb" / "sent.json").exists()
    server.mode = "ok"
    sync_runs([run])
    assert len(server.lines) == 1


@pytest.mark.parametrize(
    ("server", "message"),
    [("401", "refuses the key"), ("500", "HTTP 500"), ("hang", "cannot be reached"), ("close", "cannot be reached")],
    indirect=["server"],
)
def test_a_server_that_fails_is_an_error_that_names_it(server, message):
    with pytest.raises(ConfigError, match=message) as raised:
        check_server(Login(server.url, KEY), seconds=0.5)
    assert server.url in str(raised.value)


def test_no_network_is_an_error_that_names_the_server():
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9 cannot be reached \(.*refused.*\): check the network"):
        check_server(Login("http://127.0.0.1:9", KEY))


def test_no_key_is_an_error_that_says_what_to_do(monkeypatch):
    forget_server()
    with pytest.raises(ConfigError, match=r"no key for https://\S+: run `wandb login`"):
        find_server()
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigError, match="cannot be used"):
        find_server()


def test_the_command_finds_nothing_where_nothing_was_recorded(tmp_path):
    (tmp_path / "runs" / "gpt").mkdir(parents=True)
    (tmp_path / "runs" / "gpt" / "config.yaml").touch()
    command = [sys.executable, "-m", "mini_llm", "sync", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "nothing to send\n"), done.stderr
