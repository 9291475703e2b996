"""Choose the next token from logits, with pure functions.

Each filter takes and returns scores of shape (..., V) in float32, where -inf means "never". Definitions and order are
those of `transformers` (generation/logits_process.py): repetition penalty, suppression, temperature, top-k, top-p,
min-p.
"""

import math
import random

import torch
from torch import Tensor

from mini_llm.engine.errors import NonFiniteError

from .config import GenerateConfig

NEVER = -math.inf
# Lower temperatures all give the argmax; 0 would divide by zero, and float32 underflows below 1e-45.
SMALLEST_TEMPERATURE = 1e-20


def penalize_repetition(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Divide the positive scores of tokens `ids` (..., N) by `penalty`, multiply the negative ones (Keskar 2019)."""
    seen = scores.gather(-1, ids)
    return scores.scatter(-1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


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


def filter_scores(logits: Tensor, ids: Tensor, suppressed: Tensor, config: GenerateConfig) -> Tensor:
    """Apply all filters in order. logits (..., V), ids so far (..., N), suppressed (S,) -> float32 scores (..., V).

    At temperature 0, skips temperature and the filters after it, since decoding is greedy.
    """
    scores = logits.float()
    if config.repetition_penalty != 1:
        scores = penalize_repetition(scores, ids, config.repetition_penalty)
    scores = suppress(scores, suppressed)
    if config.temperature == 0:
        return scores
    if config.temperature != 1:
        scores = scale_temperature(scores, config.temperature)
    if config.top_k > 0:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p < 1:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p > 0:
        scores = keep_min_p(scores, config.min_p)
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


def next_token(logits: Tensor, ids: Tensor, suppressed: Tensor, config: GenerateConfig, rng: random.Random) -> int:
    """Choose one token from logits (V,). Raises NonFiniteError if the logits hold NaN or infinity."""
    scores = filter_scores(logits, ids, suppressed, config)
    # argmax treats NaN as the largest value.
    best = int(scores.argmax())
    if not math.isfinite(scores[best].item()):
        raise NonFiniteError("the model's logits are not finite: its weights are damaged, or need --dtype fp32")
    if config.temperature == 0:
        return best
    return draw(scores.softmax(-1), rng.random())
