"""W&B online, against a local server: one run across resumes, and failures of the server never stop a run."""

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import mini_llm.engine.run.wandb_mirror as mirror_module
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.run.tracker import Tracker
from mini_llm.engine.settings import TrackingConfig

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def forget_service():
    """The `server` fixture restores the address of a service process of W&B that has ended meanwhile."""
    yield
    for name in [name for name in mirror_module.os.environ if name.endswith("WANDB_SERVICE")]:
        del mirror_module.os.environ[name]
    forget_server()


class Server(ThreadingHTTPServer):
    """Answers what W&B asks at init, log and finish. `mode`: ok, 401, 500, hang, close, or die (hang after init)."""

    daemon_threads = True

    def __init__(self, mode: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = mode
        self.asked: list[tuple[str, dict]] = []
        self.stopped = threading.Event()

    def history(self) -> list[dict]:
        bodies = [body for name, body in self.asked if name == "file_stream"]
        files = [body.get("files", {}).get("wandb-history.jsonl", {}) for body in bodies]
        return [json.loads(line) for file in files for line in file.get("content", [])]

    def names(self, operation: str) -> list[str]:
        return [body.get("name") for name, body in self.asked if name == operation]

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments):
        pass

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mode = self.server.mode
        if mode == "hang" or (mode == "die" and self.server.names("UpsertBucket")):
            self.server.stopped.wait(60)
            self.close_connection = True
        elif mode == "close":
            self.close_connection = True
        elif mode in ("401", "500"):
            self.reply({}, int(mode))
        elif self.path == "/graphql":
            operation = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])[1]
            earlier = bool(self.server.names("UpsertBucket"))
            self.server.asked.append((operation, body.get("variables", {})))
            self.reply({"data": self.answer(operation, body.get("variables", {}), earlier)})
        else:
            self.server.asked.append((self.path.rpartition("/")[2], body))
            self.reply({})

    def answer(self, operation: str, given: dict, earlier: bool) -> dict:
        project = {"id": "p", "name": "mini-llm", "entity": {"id": "e", "name": "me"}}
        run = {"id": "b", "name": given.get("name"), "displayName": "run", "config": "{}", "project": project}
        lines = {"historyLineCount": 2, "logLineCount": 0, "eventsLineCount": 0, "summaryMetrics": "{}", "tags": []}
        tails = {"historyTail": '["{\\"_step\\": 1}"]', "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
        match operation:
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": run, "inserted": not earlier}}
            case "RunResumeStatus":
                return {"model": {**project, "bucket": {**run, **lines, **tails} if earlier else None}}
            case "CreateRunFiles":
                address = f"http://127.0.0.1:{self.server.server_port}/files/"
                files = [{"name": name, "uploadUrl": address + name} for name in given["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def reply(self, content: dict, status: int = 200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


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
    assert errors.count("/runs/" + run_id) == 2 and "wandb sync" not in errors


@pytest.mark.parametrize("server", ["401", "500", "hang", "close"], indirect=True)
def test_a_server_that_fails_at_the_start_leaves_an_offline_run(server, tmp_path, capsys):
    launch(tmp_path / "run", [1, 2])
    assert len(list(tmp_path.glob("run/wandb/offline-run-*"))) == 1
    assert [row["step"] for row in read_rows(tmp_path / "run/metrics.jsonl")] == [1, 2]
    errors = capsys.readouterr().err
    assert errors.count("cannot be reached") == 1 and errors.count("wandb sync") == 1


@pytest.mark.parametrize("server", ["die"], indirect=True)
def test_a_server_that_dies_later_delays_the_end_only_by_the_timeout(server, tmp_path, capsys):
    started = time.monotonic()
    launch(tmp_path / "run", [1, 2])
    assert time.monotonic() - started < 15
    assert [row["step"] for row in read_rows(tmp_path / "run/metrics.jsonl")] == [1, 2]
    assert capsys.readouterr().err.count("wandb sync") == 1
