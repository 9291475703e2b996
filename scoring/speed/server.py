"""Send requests to an OpenAI-compatible server (llama.cpp, vLLM, transformers serve) and time its stream."""

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

import numpy as np

from mini_llm.engine.errors import ConfigError

from .trace import Trace

TIMEOUT = 120.0


class ServerEngine:
    """Answers prompts with a server: POST `url`/completions, streamed.

    A chunk of the stream counts as one token, as these servers send them. An answer may end before `new_tokens`.
    """

    def __init__(self, url: str, model: str, new_tokens: int) -> None:
        self.url, self.model, self.new_tokens = url.rstrip("/"), model, new_tokens

    def answer(self, prompts: Sequence[str], slots: int, arrivals: np.ndarray | None = None) -> list[Trace]:
        """As LocalEngine.answer; with `arrivals` every request has its own connection, however many are waiting."""
        traces: list[Trace] = []
        errors: list[Exception] = []
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for prompt in prompts:
            waiting.put(prompt)

        def run(prompt: str, arrival: float) -> None:
            trace = Trace(arrival)
            traces.append(trace)
            try:
                self.stream(prompt, trace)
            except Exception as error:
                errors.append(error)

        def client() -> None:
            while not errors:
                try:
                    prompt = waiting.get_nowait()
                except queue.Empty:
                    return
                run(prompt, time.perf_counter())

        threads = []
        start = time.perf_counter()
        if arrivals is None:
            threads = [threading.Thread(target=client, daemon=True) for _ in range(slots)]
            for thread in threads:
                thread.start()
        else:
            for prompt, arrival in zip(prompts, start + arrivals, strict=True):
                time.sleep(max(0.0, arrival - time.perf_counter()))
                threads.append(threading.Thread(target=run, args=(prompt, arrival), daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return traces

    def stream(self, prompt: str, trace: Trace) -> None:
        """Send one request and note when each chunk arrives. Raises ConfigError for a server that does not answer."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": self.new_tokens, "temperature": 0, "stream": True}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                for line in response:
                    data = line.decode("utf-8", "replace").strip().removeprefix("data:").strip()
                    if data.startswith("{") and (json.loads(data).get("choices") or [{}])[0].get("text"):
                        trace.tokens.append(time.perf_counter())
        except urllib.error.HTTPError as error:
            detail = error.read().decode("utf-8", "replace")[:300]
            raise ConfigError(
                f"{self.url}/completions: HTTP {error.code}: {detail}. Check the URL (it usually ends in /v1) and "
                "--served-model"
            ) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigError(f"{self.url}: no answer ({reason}). Start the server, or check the URL") from None
