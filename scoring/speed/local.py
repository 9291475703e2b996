"""Serve requests with a model in this process: continuous batching, one loop, greedy tokens."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mini_llm.stages import load

from .trace import Trace


class LocalEngine:
    """Answers prompts with the generator of the generate stage, at most `slots` at a time.

    Every answer has `new_tokens` tokens, whatever the model wants to end, so that runs are comparable.
    """

    def __init__(self, generator: Any, new_tokens: int) -> None:
        self.generator, self.new_tokens = generator, new_tokens
        context = load("generate", "context")
        self._window, self._append_together = context.Window, context.append_together

    def answer(self, prompts: Sequence[str], slots: int, arrivals: np.ndarray | None = None) -> list[Trace]:
        """Answer all prompts; return when each request arrived and each token was there.

        With `arrivals` (seconds from the start) requests come at these times, whether a slot is free or not. Without,
        `slots` clients send their next request when they have the answer to the last.
        """
        ids = [self.generator.sample(prompt).prompt_ids for prompt in prompts]
        start = time.perf_counter()
        traces: list[Trace] = []
        running: list[tuple[Trace, Any, int]] = []  # with the window and the next token
        free = [start] * slots  # when each client can send
        while len(traces) < len(ids) or running:
            # One prompt, then one token of every answer: the others wait for one prompt at most.
            if len(traces) < len(ids) and len(running) < slots:
                arrival = free[0] if arrivals is None else start + arrivals[len(traces)]
                if arrival <= time.perf_counter():
                    free = free[1:]
                    running.append(self._begin(arrival, ids[len(traces)]))
                    traces.append(running[-1][0])
            if not running:
                time.sleep(max(0.0, start + arrivals[len(traces)] - time.perf_counter()))  # ty: ignore[not-subscriptable]
                continue
            running = self._step(running)
            free += [time.perf_counter()] * (slots - len(running) - len(free))
        return traces

    def _begin(self, arrival: float, prompt: list[int]) -> tuple[Trace, Any, int]:
        """Read a prompt and choose the first token of its answer."""
        window = self._window(self.generator.model, prompt, self.new_tokens, self.generator.step)
        token = int(window.restart().argmax())
        return Trace(arrival, [time.perf_counter()]), window, token

    def _step(self, running: list[tuple[Trace, Any, int]]) -> list[tuple[Trace, Any, int]]:
        """Append one token to every answer that is not complete; return those that are still running."""
        running = [row for row in running if len(row[0].tokens) < self.new_tokens]
        if not running:
            return []
        windows, tokens = [row[1] for row in running], [row[2] for row in running]
        if self.generator.step is not None:
            logits = self._append_together(self.generator.step, windows, tokens)
        else:
            logits = [window.append(token) for window, token in zip(windows, tokens, strict=True)]
        chosen = [int(row.argmax()) for row in logits]
        now = time.perf_counter()
        for trace, _, _ in running:
            trace.tokens.append(now)
        rows = [(trace, window, token) for (trace, window, _), token in zip(running, chosen, strict=True)]
        return [row for row in rows if len(row[0].tokens) < self.new_tokens]


def load_engine(path: Any, new_tokens: int, device: str, dtype: str) -> LocalEngine:
    """Load the decoder at `path`. Raises CheckpointError, ConfigError."""
    settings = load("generate", "config").GenerateConfig(temperature=0, max_new_tokens=new_tokens)
    return LocalEngine(load("generate", "load").load_generator(path, settings, device, dtype), new_tokens)


def memory_megabytes() -> dict[str, float]:
    """Return the peak memory of this process, and of tensors on a GPU."""
    import resource

    found = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        found["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return found
