"""`python -m scoring speed MODEL|URL`: closed loops with 1, 4 and 16 clients, then an open loop of Poisson arrivals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_llm.engine.errors import ConfigError

from ..subject import KINDS, kind_of
from .local import LocalEngine, load_engine, memory_megabytes
from .server import ServerEngine
from .trace import poisson_arrivals, ragged_prompts, summarize

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
) -> dict[str, Any]:
    """Return the summaries of every loop. Raises ConfigError, CheckpointError."""
    engine: LocalEngine | ServerEngine
    if target.startswith(("http://", "https://")):
        engine = ServerEngine(target, served_model, new_tokens)
    else:
        _, kind = kind_of(Path(target))
        if kind != "causal":
            raise ConfigError(f"{target}: speed measures a decoder that continues texts, not {KINDS[kind]}")
        engine = load_engine(Path(target), new_tokens, device, dtype)
    prompts = ragged_prompts(requests, seed, texts)
    engine.answer(prompts[:1], 1)  # warm up
    loops: list[dict[str, Any]] = [
        {"loop": "closed", "concurrency": clients, **summarize(engine.answer(prompts, clients))}
        for clients in concurrency
    ]
    best = max(float(loop.get("requests_per_second", 0)) for loop in loops)
    if not best:
        raise ConfigError(f"{target}: the server sent no text. Check --served-model")
    speed = rate or LOAD * best
    traces = engine.answer(prompts, max(concurrency), poisson_arrivals(requests, speed, seed))
    loops.append({"loop": "open", "concurrency": max(concurrency), "arrivals_per_second": speed, **summarize(traces)})
    memory = memory_megabytes() if isinstance(engine, LocalEngine) else {}
    words = [len(prompt.split()) for prompt in prompts]
    lengths = {"prompt_words": [min(words), max(words)], "new_tokens": new_tokens}
    return {"target": target, **lengths, "loops": loops, **memory}
