"""Beam search: the most likely texts of a fixed width, as `transformers` finds them (early_stopping=False)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mini_llm.engine.errors import ConfigError

from .context import Answer, Window, append_together
from .sampling import check_finite, filter_scores


@dataclass
class Beam:
    """The generated tokens of a hypothesis and their log-probabilities: raw by the model, and summed after filters.

    `score` is the filtered sum divided by length ** length_penalty. `ended_by` is "end", "stop" or "length".
    """

    ids: list[int]
    logprobs: list[float]
    total: float
    score: float = 0.0
    ended_by: str = ""
    slides: int = 0
    context: Any = None


def search(
    generator: Any, window: Window | Answer, logits: Tensor, hits_stop: Callable[[list[int]], bool]
) -> list[Beam]:
    """Return the `num_beams` best texts after the prompt of `window`, best first. Raises NonFiniteError.

    `logits` (V,) are those after the prompt; `hits_stop(ids)` tells whether a text contains a stop string.
    """
    config, width = generator.config, generator.config.num_beams
    kept = max(2, 1 + len(generator.end_ids)) * width
    running, after = [Beam([], [], 0.0, context=window.copy())], [logits]
    finished: list[Beam] = []
    length = 0
    while running and length < config.max_new_tokens:
        length += 1
        raw = torch.stack([row.float().log_softmax(-1) for row in after])
        check_finite(raw)
        rows = [_scores(generator, beam, row, window.history) for beam, row in zip(running, raw, strict=True)]
        totals = torch.stack(rows) + torch.tensor([[beam.total] for beam in running], device=raw.device)
        best = totals.flatten().topk(min(kept, totals.numel()))
        found = []
        for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            row, token = divmod(place, raw.size(1))
            if total > float("-inf"):
                beam = running[row]
                extended = Beam([*beam.ids, token], [*beam.logprobs, float(raw[row, token])], total)
                extended.context, extended.slides = beam.context, beam.context.slides
                extended.score = total / length**config.length_penalty
                extended.ended_by = _ended_by(generator, extended.ids, hits_stop)
                found.append(extended)
        # As in transformers, a text that ends counts only if it is among the best `width` candidates.
        finished += [beam for beam in found[:width] if beam.ended_by]
        finished = sorted(finished, key=lambda beam: -beam.score)[:width]
        running = [beam for beam in found if not beam.ended_by][:width]
        full = len(finished) == width
        if full and running and running[0].total / length**config.length_penalty <= finished[-1].score:
            break
        if running:
            after = _advance(generator.step, running)
    if not finished:
        raise ConfigError(
            "the settings leave no token to choose: relax no_repeat_ngram_size, min_new_tokens or the bias"
        )
    for beam in finished:
        beam.context = None  # its keys and values are no longer needed
    return finished


def _scores(generator: Any, beam: Beam, logprobs: Tensor, history: Sequence[int]) -> Tensor:
    ids = torch.tensor([*history, *beam.ids], device=logprobs.device)
    return filter_scores(
        logprobs, ids, generator.suppressed, generator.config, generator.controls, written=len(beam.ids)
    )


def _ended_by(generator: Any, ids: list[int], hits_stop: Callable[[list[int]], bool]) -> str:
    if ids[-1] in generator.end_ids:
        return "end"
    if hits_stop(ids):
        return "stop"
    return "length" if len(ids) == generator.config.max_new_tokens else ""


def _advance(step: Any, beams: list[Beam]) -> list[Tensor]:
    """Append the last token of each beam to a context of its own. Return the logits (V,) after each."""
    used: set[int] = set()
    for beam in beams:
        # Several beams may continue one; the first takes over its context.
        if id(beam.context) in used:
            beam.context = beam.context.copy()
        used.add(id(beam.context))
    tokens = [beam.ids[-1] for beam in beams]
    if step is None:
        return [beam.context.append(token) for beam, token in zip(beams, tokens, strict=True)]
    return append_together(step, [beam.context for beam in beams], tokens)
