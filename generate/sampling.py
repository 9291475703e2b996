"""Choose the next token from logits, with pure functions.

Each filter takes and returns scores of shape (..., V) in float32, where -inf means "never". Definitions and order are
those of `transformers` (generation/logits_process.py): bias, repetition penalty, no repeated n-grams, minimum length,
suppression, temperature, top-k, top-p, min-p, typical. Presence and frequency penalties follow the repetition penalty.
"""

import math
import random
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mini_llm.engine.errors import ConfigError, NonFiniteError

from .config import GenerateConfig

NEVER = -math.inf
# Lower temperatures all give the argmax; 0 would divide by zero, and float32 underflows below 1e-45.
SMALLEST_TEMPERATURE = 1e-20


class Controls(NamedTuple):
    """What the controls of a GenerateConfig mean in the tokens of one model.

    bias: added to the logit of the last token where a token sequence may be completed. end_ids (E,): tokens that end a
    text.
    """

    bias: Mapping[tuple[int, ...], float] = {}
    end_ids: Tensor = torch.empty(0, dtype=torch.int64)


NO_CONTROLS = Controls()


def add_bias(scores: Tensor, ids: Tensor, bias: Mapping[tuple[int, ...], float]) -> Tensor:
    """Add each bias to the last token of its sequence, where `ids` (..., N) end with the tokens before it."""
    scores = scores.clone()
    for (*before, last), value in bias.items():
        if len(before) > ids.size(-1):
            continue
        start = ids.size(-1) - len(before)
        scores[..., last] += value * (ids[..., start:] == torch.tensor(before, device=ids.device)).all(-1)
    return scores


def penalize_repetition(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Divide the positive scores of tokens `ids` (..., N) by `penalty`, multiply the negative ones (Keskar 2019)."""
    seen = scores.gather(-1, ids)
    return scores.scatter(-1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def penalize_written(scores: Tensor, written: Tensor, presence: float, frequency: float) -> Tensor:
    """Subtract `presence` from tokens in the generated ids (..., N), and `frequency` for each time they occur.

    The definition is OpenAI's (API reference, "presence and frequency penalties").
    """
    counts = torch.zeros_like(scores).scatter_add(-1, written, torch.ones_like(written, dtype=scores.dtype))
    return scores - frequency * counts - presence * (counts > 0)


def forbid_repeated_ngrams(scores: Tensor, ids: Tensor, n: int) -> Tensor:
    """Set to -inf each token that would complete `n` consecutive tokens which `ids` (..., N) already contain."""
    length = ids.size(-1)
    if length < n:
        return scores
    ngrams = ids.unfold(-1, n, 1)  # (..., N - n + 1, n)
    found = (ngrams[..., :-1] == ids[..., None, length - n + 1 :]).all(-1)
    hits = torch.zeros_like(scores).scatter_add(-1, ngrams[..., -1], found.to(scores.dtype))
    return scores.masked_fill(hits > 0, NEVER)


def suppress(scores: Tensor, ids: Tensor) -> Tensor:
    """Set the scores of tokens `ids` (N,) to -inf."""
    return scores.index_fill(-1, ids, NEVER)


def scale_temperature(scores: Tensor, temperature: float) -> Tensor:
    """Divide by `temperature` > 0, after moving the best score to 0: the same distribution, and no overflow."""
    return (scores - scores.amax(-1, keepdim=True)) / max(temperature, SMALLEST_TEMPERATURE)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Keep the `k` best scores and their ties; a `k` above V keeps all."""
    smallest = scores.topk(min(k, scores.size(-1))).values[..., -1:]
    return scores.masked_fill(scores < smallest, NEVER)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Keep the smallest set of best tokens whose probability reaches `p` in (0, 1] (Holtzman 2020)."""
    ascending, order = scores.sort(-1)
    remove = ascending.softmax(-1).cumsum(-1) <= 1 - p
    remove[..., -1] = False
    return scores.masked_fill(remove.scatter(-1, order, remove), NEVER)


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Keep the tokens with at least `p` times the probability of the best one (Nguyen 2024)."""
    probabilities = scores.softmax(-1)
    return scores.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), NEVER)


def keep_typical(scores: Tensor, p: float) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, until their probability reaches `p` (Meister 2022)."""
    log_probabilities = scores.log_softmax(-1)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(-1, keepdim=True)
    distance, order = (-log_probabilities - entropy).abs().sort(-1)
    reached = scores.gather(-1, order).softmax(-1).cumsum(-1) < p
    last = reached.sum(-1, keepdim=True).clamp(max=scores.size(-1) - 1)
    remove = distance > distance.gather(-1, last)
    return scores.masked_fill(remove.scatter(-1, order, remove), NEVER)


def filter_scores(
    logits: Tensor,
    ids: Tensor,
    suppressed: Tensor,
    config: GenerateConfig,
    controls: Controls = NO_CONTROLS,
    written: int = 0,
    allowed: Tensor | None = None,
) -> Tensor:
    """Apply all filters in order. logits (..., V), ids so far (..., N), suppressed (S,) -> float32 scores (..., V).

    The last `written` ids are generated, the others are the prompt. `allowed` (V,) are the tokens that a grammar
    permits. At temperature 0 or in a beam search, skips temperature and the filters after it.
    """
    scores = logits.float()
    if controls.bias:
        scores = add_bias(scores, ids, controls.bias)
    if config.repetition_penalty != 1:
        scores = penalize_repetition(scores, ids, config.repetition_penalty)
    if config.presence_penalty or config.frequency_penalty:
        generated = ids[..., ids.size(-1) - written :]
        scores = penalize_written(scores, generated, config.presence_penalty, config.frequency_penalty)
    if config.no_repeat_ngram_size:
        scores = forbid_repeated_ngrams(scores, ids, config.no_repeat_ngram_size)
    if written < config.min_new_tokens:
        scores = suppress(scores, controls.end_ids)
    scores = suppress(scores, suppressed)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, NEVER)
    if config.temperature == 0 or config.num_beams > 1:
        return scores
    if config.temperature != 1:
        scores = scale_temperature(scores, config.temperature)
    if config.top_k > 0:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p < 1:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p > 0:
        scores = keep_min_p(scores, config.min_p)
    if config.typical_p < 1:
        scores = keep_typical(scores, config.typical_p)
    return scores


def draw(probabilities: Tensor, uniform: float) -> int:
    """Return the token at `uniform` in [0, 1) of the cumulative distribution (V,), never one of probability 0."""
    cumulative = probabilities.cpu().double().cumsum(-1)
    total = cumulative[-1].item()
    # Rounding can carry uniform * total up to total, which is past the last token.
    position = min(uniform * total, math.nextafter(total, 0))
    return int(torch.searchsorted(cumulative, position, right=True))


def random_stream(seed: int, index: int) -> random.Random:
    """Return the generator of sample `index`. It depends on (seed, index) only, not on how many samples are drawn."""
    return random.Random(f"{seed}/{index}")


def next_token(
    logits: Tensor,
    ids: Tensor,
    suppressed: Tensor,
    config: GenerateConfig,
    rng: random.Random,
    controls: Controls = NO_CONTROLS,
    written: int = 0,
    allowed: Tensor | None = None,
) -> int:
    """Choose one token from logits (V,); see filter_scores.

    Raises NonFiniteError if the logits hold NaN or infinity, ConfigError if the filters leave no token.
    """
    scores = filter_scores(logits, ids, suppressed, config, controls, written, allowed)
    # argmax treats NaN as the largest value. On a CPU that of NumPy is ten times as fast as PyTorch's.
    best = int(scores.numpy().argmax() if scores.is_cpu else scores.argmax())
    if not math.isfinite(scores[best].item()):
        check_finite(logits)
        raise ConfigError(
            "the settings leave no token to choose: relax no_repeat_ngram_size, min_new_tokens or the grammar"
        )
    if config.temperature == 0:
        return best
    return draw(scores.softmax(-1), rng.random())


def check_finite(logits: Tensor) -> None:
    """Raise NonFiniteError if logits hold NaN or infinity."""
    if not logits.isfinite().all():
        raise NonFiniteError("the model's logits are not finite: its weights are damaged, or need --dtype fp32")
