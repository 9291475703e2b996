"""Log-probabilities of tokens under a decoder, in padded batches of windows of similar length."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from mini_llm.engine.errors import NonFiniteError
from mini_llm.model import CausalLM

from .windows import Window

BATCH_TOKENS = 8192
LOGITS = 1 << 23  # computed at once
SORTED_BATCHES = 8  # windows of so many batches are sorted by length together


class TokenScores(NamedTuple):
    """One entry per predicted token.

    log_probability: of the token, in nats. context: how many tokens the model saw before it. confidence: the highest
    probability of any token. correct: whether the token has it.
    """

    log_probability: np.ndarray
    context: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


def score_windows(
    model: CausalLM, windows: Iterable[Window], batch_tokens: int = BATCH_TOKENS
) -> Iterator[TokenScores]:
    """Yield the scores of each window, in order. Raises NonFiniteError if the model returns NaN."""
    waiting = iter(windows)
    while True:
        group: list[Window] = []
        total = 0
        while total < SORTED_BATCHES * batch_tokens and (more := list(islice(waiting, 1))):
            group += more
            total += len(more[0].inputs)
        if not group:
            return
        yield from _score_group(model, group, batch_tokens)


def _score_group(model: CausalLM, group: Sequence[Window], batch_tokens: int) -> list[TokenScores]:
    found: dict[int, TokenScores] = {}
    order = sorted(range(len(group)), key=lambda i: -len(group[i].inputs))
    while order:
        rows = max(1, batch_tokens // len(group[order[0]].inputs))
        chosen, order = order[:rows], order[rows:]
        for i, scores in zip(chosen, _score_batch(model, [group[i] for i in chosen]), strict=True):
            found[i] = scores
    return [found[i] for i in range(len(group))]


@torch.inference_mode()
def _score_batch(model: CausalLM, windows: Sequence[Window]) -> Iterator[TokenScores]:
    device = model.lm_head.weight.device
    longest = max(len(window.inputs) for window in windows)
    # Padding stands at the end, where no scored token attends to it.
    ids = torch.tensor([[*window.inputs, *[0] * (longest - len(window.inputs))] for window in windows], device=device)
    hidden = model.trunk(ids)  # B T C
    kept = torch.cat(
        [hidden[row, len(w.inputs) - w.scored : len(w.inputs)] for row, w in enumerate(windows)]
    )  # scored tokens, C
    targets = torch.tensor([token for window in windows for token in window.targets], device=device)
    parts = [
        _read(model.predict(states), goals)
        for states, goals in zip(
            kept.split(max(1, LOGITS // model.config.vocab_size)),
            targets.split(max(1, LOGITS // model.config.vocab_size)),
            strict=True,
        )
    ]
    log_probability, confidence, correct = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    if not np.isfinite(log_probability).all():
        raise NonFiniteError("the model's logits are not finite: its weights are damaged, or need --dtype fp32")
    start = 0
    for window in windows:
        end = start + window.scored
        context = np.arange(len(window.inputs) - window.scored, len(window.inputs)) + 1
        yield TokenScores(log_probability[start:end], context, confidence[start:end], correct[start:end])
        start = end


def _read(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability of the target, the highest probability, and whether the target has it, for logits (N, V)."""
    logits = logits.float()
    normalizer = logits.logsumexp(-1)
    best, token = logits.max(-1)
    chosen = logits.gather(-1, targets[:, None])[:, 0]
    return (chosen - normalizer).double(), (best - normalizer).exp().double(), token == targets
