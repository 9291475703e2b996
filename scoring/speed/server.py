"""Send requests to an OpenAI-compatible server (llama.cpp, vLLM, transformers serve) and time its stream."""

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from mini_llm.engine.errors import ConfigError

from .trace import Trace

TIMEOUT = 120.0
# Fields of llama.cpp and vLLM that make work comparable: answers of full length, and no prompt read from a cache.
EXTENSIONS = {"ignore_eos": True, "cache_prompt": False}
REFUSED = (400, 422)


class ServerEngine:
    """Answers prompts with a server: POST `url`/completions, streamed.

    A chunk of the stream counts as one token, as these servers send them, unless the server says how many it has
    generated. An answer may end before `new_tokens` where the server does not know `ignore_eos`.
    """

    def __init__(self, url: str, model: str, new_tokens: int) -> None:
        self.url, self.model, self.new_tokens = url.rstrip("/"), model, new_tokens
        self.extensions: dict[str, Any] = EXTENSIONS

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
        known = {"model": self.model, "prompt": prompt, "max_tokens": self.new_tokens, "temperature": 0, "stream": True}
        body = json.dumps({**known, **self.extensions}).encode()
        request = urllib.request.Request(f"{self.url}/completions", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                for line in response:
                    self._read(line.decode("utf-8", "replace"), trace)
        except urllib.error.HTTPError as error:
            detail = error.read().decode("utf-8", "replace")[:300]
            if error.code in REFUSED and self.extensions:
                # A server that accepts the fields of OpenAI only.
                self.extensions = {}
                return self.stream(prompt, trace)
            raise ConfigError(
                f"{self.url}/completions: HTTP {error.code}: {detail}. Check the URL (it usually ends in /v1), "
                "--served-model, and that the longest prompt fits into the server's context (--prompt-words)"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise ConfigError(f"{self.url}: no answer ({reason}). Start the server, or check the URL") from None
        return None

    def _read(self, line: str, trace: Trace) -> None:
        """Note the time of a line of the stream that holds text. Raises ConfigError for a report of an error."""
        data = line.strip().removeprefix("data:").removeprefix("error:").strip()
        if not data.startswith("{"):
            return
        try:
            chunk = json.loads(data)
            text = (chunk.get("choices") or [{}])[0].get("text")
            generated = (chunk.get("usage") or {}).get("completion_tokens")
        except (ValueError, AttributeError):
            raise ConfigError(f"{self.url}/completions: the stream holds no completions: {data[:200]}") from None
        if "error" in chunk:
            raise ConfigError(f"{self.url}/completions: the server reports an error: {str(chunk['error'])[:300]}")
        if text:
            trace.tokens.append(time.perf_counter())
        if isinstance(generated, int):
            trace.generated = generated
