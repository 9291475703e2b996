"""A stand-in for W&B's server on this machine, healthy or broken in a chosen way."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_SECONDS = 0.1


class Server(ThreadingHTTPServer):
    """Answers what W&B asks at init, log, finish and sync.

    mode: ok, slow, 401 (refuses the key), 500, hang, close (the connection without an answer), die (hang after init),
    late 500 (500 after init).
    """

    daemon_threads = True

    def __init__(self, mode: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = mode
        self.asked: list[tuple[str, dict]] = []
        # Rows of the history by run and place: a place that is sent again is overwritten, as on W&B's server.
        self.lines: dict[str, dict[int, dict]] = {}
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def history(self) -> list[dict]:
        """The rows of all runs as they were sent."""
        bodies = [body for name, body in self.asked if name == "file_stream"]
        files = [body.get("files", {}).get("wandb-history.jsonl", {}) for body in bodies]
        return [json.loads(line) for file in files for line in file.get("content", [])]

    def names(self, operation: str) -> list[str]:
        return [body.get("name") for name, body in self.asked if name == operation]

    def operations(self) -> set[str]:
        return {name for name, _ in self.asked}

    def store(self, run_id: str, body: dict) -> None:
        part = body.get("files", {}).get("wandb-history.jsonl", {})
        rows = self.lines.setdefault(run_id, {})
        for place, line in enumerate(part.get("content", []), part.get("offset", 0)):
            rows[place] = json.loads(line)

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
        begun = bool(self.server.names("UpsertBucket"))
        if mode == "slow":
            time.sleep(SLOW_SECONDS)
        if mode == "hang" or (mode == "die" and begun):
            self.server.stopped.wait(60)
            self.close_connection = True
        elif mode == "close":
            self.close_connection = True
        elif mode in ("401", "500") or (mode == "late 500" and begun):
            self.reply({}, int(mode[-3:]))
        elif self.path == "/graphql":
            operation = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])[1]
            self.server.asked.append((operation, body.get("variables") or {}))
            self.reply({"data": self.answer(operation, body.get("variables") or {}, begun)})
        else:
            *_, run_id, name = self.path.split("/")
            self.server.asked.append((name, body))
            self.server.store(run_id, body)
            self.reply({})

    def answer(self, operation: str, given: dict, earlier: bool) -> dict:
        project = {"id": "p", "name": "mini-llm", "entity": {"id": "e", "name": "me"}}
        run = {"id": "b", "name": given.get("name"), "displayName": "run", "config": "{}", "project": project}
        lines = {"historyLineCount": 2, "logLineCount": 0, "eventsLineCount": 0, "summaryMetrics": "{}", "tags": []}
        tails = {"historyTail": '["{\\"_step\\": 1}"]', "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
        match operation:
            case "Viewer":
                return {"viewer": {"id": "v", "username": "me", "entity": "me", "flags": "{}"}}
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": run, "inserted": not earlier}}
            case "RunResumeStatus":
                return {"model": {**project, "bucket": {**run, **lines, **tails} if earlier else None}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.server.url}/files/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                # An artifact that the server knows already is not uploaded.
                sequence = {"id": "s", "name": "x", "latestArtifact": None}
                return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
            case "UseArtifact":
                return {"useArtifact": {"artifact": {"id": "a", "digest": "d", "aliases": []}}}
        return {}

    def reply(self, content: dict, status: int = 200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
