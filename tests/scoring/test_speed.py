"""Speed: percentiles, arrivals, a model here, and a stand-in for an OpenAI-compatible server with known delays."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import pytest

from mini_llm.engine.errors import ConfigError
from scoring.speed.local import load_engine
from scoring.speed.run import measure
from scoring.speed.server import ServerEngine
from scoring.speed.trace import Trace, percentiles, poisson_arrivals, ragged_prompts, summarize


def test_a_summary_follows_from_the_times():
    traces = [Trace(0.0, [1.0, 1.5, 2.5]), Trace(1.0, [1.25]), Trace(9.0)]
    found = summarize(traces)
    assert (found["requests"], found["tokens"], found["seconds"]) == (2, 4, 2.5)
    assert found["short_answers"] == 0 and summarize(traces, 3)["short_answers"] == 1
    assert found["requests_per_second"] == 0.8 and found["tokens_per_second"] == 1.6
    assert found["milliseconds_to_first_token"]["p50"] == 625  # of 1000 and 250
    assert found["milliseconds_between_tokens"] == pytest.approx({"p50": 750, "p95": 975, "p99": 995})
    assert found["milliseconds_to_last_token"]["p99"] == pytest.approx(250 + 0.99 * 2250)
    assert summarize([Trace(0.0)]) == {"requests": 0}
    values = np.random.default_rng(0).exponential(size=999)
    assert percentiles(values)["p95"] == pytest.approx(1e3 * np.percentile(values, 95))


def test_arrivals_are_poisson():
    arrivals = poisson_arrivals(20_000, 4.0, 0)
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0 and gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    counts = np.bincount(arrivals.astype(int))[:-1]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.1)


def test_prompts_have_many_lengths_and_follow_the_seed():
    lengths = [len(prompt.split()) for prompt in ragged_prompts(300, 0)]
    assert min(lengths) <= 5 and max(lengths) >= 180 and np.median(lengths) < 50
    assert ragged_prompts(5, 0) == ragged_prompts(5, 0) != ragged_prompts(5, 1)
    assert set(" ".join(ragged_prompts(9, 0, ["x y", "z"])).split()) == {"x", "y", "z"}


@pytest.fixture(scope="module")
def engine(lab):
    return load_engine(lab / "runs" / "gpt", 6, "cpu", "auto")


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("rate", [None, 500.0])
def test_every_request_is_answered_whatever_runs_beside_it(engine, slots, rate):
    prompts = ragged_prompts(7, 0)
    arrivals = None if rate is None else poisson_arrivals(7, rate, 0)
    traces = engine.answer(prompts, slots, arrivals)
    assert [len(trace.tokens) for trace in traces] == [6] * 7
    for trace in traces:
        assert trace.arrival <= trace.tokens[0] and trace.tokens == sorted(trace.tokens)
    if arrivals is not None:
        # The clock counts from the start of the machine: after 18 hours its digits end at 1.5e-11 s.
        assert np.diff([trace.arrival for trace in traces]) == pytest.approx(np.diff(arrivals), abs=1e-9)
    elif slots == 1:  # a client waits for its answer
        assert all(b.arrival >= a.tokens[-1] for a, b in pairwise(traces))


def test_waiting_for_a_slot_counts(engine):
    together = engine.answer(ragged_prompts(8, 0), 1, np.zeros(8))
    first = [trace.tokens[0] - trace.arrival for trace in together]
    assert first == sorted(first) and first[-1] > 3 * first[0]


class Server(ThreadingHTTPServer):
    """Streams `pieces` chunks after `delay` seconds, with `gap` between them, then `last`; one request at a time if
    `single`. It answers with `status`, and with 400 if a request has a field of `refused`."""

    daemon_threads = True

    def __init__(self, delay=0.1, gap=0.02, pieces=4, single=False, status=200, last="", refused=()):
        self.delay, self.gap, self.pieces, self.status = delay, gap, pieces, status
        self.last, self.refused = last, refused
        self.lock = threading.Lock() if single else None
        self.seen = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        self.server.seen.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        if self.server.lock:
            with self.server.lock:
                return self.answer()
        self.answer()

    def answer(self):
        server = self.server
        time.sleep(server.delay)
        status = 400 if set(server.refused) & set(server.seen[-1][1]) else server.status
        self.send_response(status)
        self.end_headers()
        for i in range(server.pieces if status == 200 else 0):
            time.sleep(server.gap if i else 0)
            self.wfile.write(b'data: {"choices": [{"text": "word"}]}\n\n')
            self.wfile.flush()
        self.wfile.write(server.last.encode())
        self.wfile.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_a_server_is_timed_chunk_by_chunk():
    server = Server()
    traces = ServerEngine(server.url, "gpt", 9).answer(["a", "b c"], 1)
    assert traces[1].arrival >= traces[0].tokens[-1]  # a client waits for its answer
    found = summarize(traces)
    path, body = server.seen[0]
    assert path == "/v1/completions" and body["model"] == "gpt" and body["max_tokens"] == 9 and body["stream"]
    assert found["tokens"] == 8
    assert 95 < found["milliseconds_to_first_token"]["p50"] < 400
    assert 15 < found["milliseconds_between_tokens"]["p50"] < 80


def test_clients_run_beside_each_other_and_arrivals_wait_for_a_busy_server():
    beside = summarize(ServerEngine(Server(delay=0.2).url, "m", 4).answer(["p"] * 4, 4))
    assert beside["seconds"] < 0.7  # one after another: over a second
    busy = ServerEngine(Server(delay=0.1, single=True).url, "m", 4)
    traces = busy.answer(["p"] * 4, 4, np.arange(4) * 0.01)
    assert np.diff([trace.arrival for trace in traces]) == pytest.approx(0.01, abs=1e-6)
    first = sorted(trace.tokens[0] - trace.arrival for trace in traces)
    assert first[-1] > 0.4 and first[0] < 0.3


def test_a_server_that_refuses_or_is_gone_is_said():
    with pytest.raises(ConfigError, match="HTTP 404"):
        ServerEngine(Server(status=404).url, "m", 4).answer(["p"], 1)
    with pytest.raises(ConfigError, match="Start the server"):
        ServerEngine("http://127.0.0.1:9/v1", "m", 4).answer(["p"], 1)


def test_answers_have_full_length_where_the_server_knows_how():
    server = Server(delay=0)
    ServerEngine(server.url, "m", 4).answer(["p"], 1)
    assert server.seen[0][1]["ignore_eos"] is True and server.seen[0][1]["cache_prompt"] is False
    strict = Server(delay=0, refused=["ignore_eos"])
    engine = ServerEngine(strict.url, "m", 4)
    assert [len(trace.tokens) for trace in engine.answer(["p", "q"], 1)] == [4, 4]
    assert [("ignore_eos" in body) for _, body in strict.seen] == [True, False, False]


def test_the_number_of_tokens_is_the_one_that_the_server_reports():
    server = Server(delay=0, last='data: {"choices": [{"text": ""}], "usage": {"completion_tokens": 6}}\n\n')
    traces = ServerEngine(server.url, "m", 6).answer(["p", "q"], 2)
    assert [len(trace.tokens) for trace in traces] == [4, 4] and summarize(traces)["tokens"] == 12


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ('data: {"error": {"message": "too long"}}\n\n', "too long"),
        ("data: {not JSON}\n\n", "holds no completions"),
        ('data: {"choices": ["a text"]}\n\n', "holds no completions"),
    ],
)
def test_an_error_in_the_stream_is_said(last, words):
    with pytest.raises(ConfigError, match=words):
        ServerEngine(Server(delay=0, last=last).url, "m", 4).answer(["p"], 1)


def test_an_address_that_is_none_is_said():
    for url in ("http://127.0.0.1:port/v1", "http://"):
        with pytest.raises(ConfigError, match="check the URL"):
            ServerEngine(url, "m", 4).answer(["p"], 1)


def test_no_prompt_comes_twice_and_none_is_too_long():
    server = Server(delay=0, gap=0)
    found = measure(server.url, [1, 2], 5, 3, 500.0, None, "m", 0, "cpu", "auto", longest=20)
    prompts = [body["prompt"] for _, body in server.seen[1:]]
    assert len(set(prompts)) == len(prompts) == 15
    assert found["prompt_words"][0] >= 4 and found["prompt_words"][1] <= 20
    with pytest.raises(ConfigError, match="at least 4 words"):
        measure(server.url, [1], 1, 3, None, None, "m", 0, "cpu", "auto", longest=3)


def test_models_and_servers_get_the_same_loops(lab):
    options = ([1, 2], 4, 3, None, None, "m", 0, "cpu", "auto")
    for target in (str(lab / "runs" / "gpt"), Server(delay=0.01, gap=0.001).url):
        found = measure(target, *options)
        assert [(loop["loop"], loop["concurrency"]) for loop in found["loops"]] == [
            ("closed", 1),
            ("closed", 2),
            ("open", 2),
        ]
        assert all(loop["requests"] == 4 for loop in found["loops"]) and json.dumps(found)
        assert ("peak_memory_mb" in found) == ("runs" in target)
    with pytest.raises(ConfigError, match="not an encoder"):
        measure(str(lab / "runs" / "mlm"), *options)
