"""`python -m scoring speed MODEL|URL`: closed loops with 1, 4 and 16 clients, then an open loop of Poisson arrivals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mini_llm.engine.errors import ConfigError

from ..subject import KINDS, kind_of
from .local import LocalEngine, load_engine, memory_megabytes
from .server import ServerEngine
from .trace import LONGEST, SHORTEST, Trace, poisson_arrivals, ragged_prompts, summarize

LOAD = 0.7  # of the measured throughput: the rate of the open loop, unless one is given


def measure(
    target: str,
    concurrency: Sequence[int],
    requests: int,
    new_tokens: int,
    rate: float | None,
    texts: Sequence[str] | None,
    served_model: str,
    seed: int,
    device: str,
    dtype: str,
    longest: int = LONGEST,
) -> dict[str, Any]:
    """Return the summaries of every loop. `longest`: words of a prompt. Raises ConfigError, CheckpointError."""
    if longest < SHORTEST:
        raise ConfigError(f"--prompt-words {longest}: a prompt has at least {SHORTEST} words")
    engine: LocalEngine | ServerEngine
    if target.startswith(("http://", "https://")):
        engine = ServerEngine(target, served_model, new_tokens)
    else:
        _, kind = kind_of(Path(target))
        if kind != "causal":
            raise ConfigError(f"{target}: speed measures a decoder that continues texts, not {KINDS[kind]}")
        engine = load_engine(Path(target), new_tokens, device, dtype)
    words: list[int] = []

    def answer(loop: int, clients: int, arrivals: np.ndarray | None = None) -> list[Trace]:
        """Every loop has prompts of its own, which no cache holds."""
        prompts = ragged_prompts(requests, (seed, loop), texts, longest)
        words.extend(len(prompt.split()) for prompt in prompts)
        return engine.answer(prompts, clients, arrivals)

    engine.answer(ragged_prompts(1, seed, texts, longest), 1)  # warm up
    loops: list[dict[str, Any]] = [
        {"loop": "closed", "concurrency": clients, **summarize(answer(loop, clients), new_tokens)}
        for loop, clients in enumerate(concurrency)
    ]
    best = max(float(loop.get("requests_per_second", 0)) for loop in loops)
    if not best:
        raise ConfigError(f"{target}: the server sent no text. Check that the URL ends in /v1, and --served-model")
    speed = rate or LOAD * best
    most = max(concurrency)
    traces = answer(len(concurrency), most, poisson_arrivals(requests, speed, seed))
    summary = summarize(traces, new_tokens)
    loops.append({"loop": "open", "concurrency": most, "arrivals_per_second": speed, **summary})
    memory = memory_megabytes() if isinstance(engine, LocalEngine) else {}
    lengths = {"prompt_words": [min(words), max(words)], "new_tokens": new_tokens}
    return {"target": target, **lengths, "loops": loops, **memory}
