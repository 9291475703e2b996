"""When each token of each request arrived, and what follows from that."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PERCENTILES = (50, 95, 99)
SHORTEST, LONGEST = 4, 200  # words of a prompt


@dataclass
class Trace:
    """The times of a request in seconds on one clock: when it arrived, and when each of its tokens did.

    generated: the number of tokens where a server reports it; some tokens are no text of their own.
    """

    arrival: float
    tokens: list[float] = field(default_factory=list)
    generated: int | None = None


def summarize(traces: Sequence[Trace], new_tokens: int = 0) -> dict[str, Any]:
    """Return milliseconds to the first token, between tokens and to the last one as percentiles over requests (for
    "between" over tokens), requests and tokens per second from the first arrival to the last token, and the number of
    answers of fewer than `new_tokens`.

    Time to the first token counts from the arrival, so that waiting for a free slot counts.
    """
    done = [trace for trace in traces if trace.tokens]
    if not done:
        return {"requests": 0}
    first = [trace.tokens[0] - trace.arrival for trace in done]
    whole = [trace.tokens[-1] - trace.arrival for trace in done]
    between = np.concatenate([np.diff(trace.tokens) for trace in done])
    seconds = max(trace.tokens[-1] for trace in done) - min(trace.arrival for trace in done)
    lengths = [trace.generated or len(trace.tokens) for trace in done]
    count = sum(lengths)
    return {
        "requests": len(done),
        "tokens": count,
        "short_answers": sum(length < new_tokens for length in lengths),
        "seconds": seconds,
        "requests_per_second": len(done) / seconds,
        "tokens_per_second": count / seconds,
        "milliseconds_to_first_token": percentiles(first),
        "milliseconds_between_tokens": percentiles(between) if len(between) else None,
        "milliseconds_to_last_token": percentiles(whole),
    }


def percentiles(seconds: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return P50, P95 and P99 in milliseconds, by linear interpolation as NumPy does."""
    values = np.percentile(1e3 * np.asarray(seconds), PERCENTILES)
    return {f"p{share}": float(value) for share, value in zip(PERCENTILES, values, strict=True)}


def poisson_arrivals(count: int, rate: float, seed: int) -> np.ndarray:
    """Return the times of `count` requests that arrive independently, `rate` a second, the first one at 0."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return np.cumsum(gaps) - gaps[0]


def ragged_prompts(
    count: int, seed: int | Sequence[int], texts: Sequence[str] | None = None, longest: int = LONGEST
) -> list[str]:
    """Return prompts of different lengths: SHORTEST to `longest` words, log-uniform.

    They are passages of `texts`, or random words, so that no two of them begin alike: a server may keep what it has
    read of a prompt.
    """
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.uniform(np.log(SHORTEST), np.log(longest), count)).astype(int)
    if not texts:
        return [" ".join(generator.choice(WORDS.split(), length)) for length in lengths]
    words = " ".join(texts).split()
    starts = generator.integers(len(words), size=count)
    return [
        " ".join(words[(start + i) % len(words)] for i in range(n)) for start, n in zip(starts, lengths, strict=True)
    ]


WORDS = """the cat sat near a river while two children read an old book about ships and storms in the evening light
because their father had told them that every journey begins with a map some bread and one honest friend"""
