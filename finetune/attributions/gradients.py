"""Token attributions by integrated gradients (Sundararajan et al. 2017, "Axiomatic attribution for deep networks").

The attribution of a token is (e - e') . integral over a in [0, 1] of df/de at e' + a (e - e'), where e is its embedding
and e' that of a token without information. Attributions sum to f(text) - f(text without information): completeness.

Shapes: T tokens, S steps, C hidden_size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mini_llm.model import SequenceClassifier
from mini_llm.model.heads import EncoderDecoder
from mini_llm.model.transformer import Transformer

# Points of the Gauss-Legendre rule; doubled until the attributions sum to the difference, within TOLERANCE of it.
STEPS, MOST_STEPS = 16, 256
TOLERANCE = 0.02
# Tokens in one forward pass.
CHUNK = 8192


@dataclass(frozen=True)
class Attribution:
    """scores (T,): how much each token adds to logit[a] - logit[b], `value` of the text and `baseline` without it."""

    scores: np.ndarray
    value: float
    baseline: float
    steps: int

    @property
    def error(self) -> float:
        """How far the sum of the scores is from value - baseline."""
        return abs(float(self.scores.sum()) - (self.value - self.baseline))


def attribute(
    model: SequenceClassifier, ids: np.ndarray, a: int, b: int, fixed: frozenset[int], empty: Tensor
) -> Attribution:
    """The attribution of logit[a] - logit[b] to the tokens `ids` (T,).

    Tokens in `fixed` (special ones) stay as they are and get 0. empty (C,): the embedding of a token without
    information; the zero vector would not do, since norms make a network blind to the length of an embedding.
    """
    steps = STEPS
    while True:
        found = _attribute(model, ids, (a, b), fixed, empty, steps)
        if found.error <= TOLERANCE * max(abs(found.value - found.baseline), 0.1) or steps >= MOST_STEPS:
            return found
        steps *= 2


def _attribute(
    model: SequenceClassifier,
    ids: np.ndarray,
    labels: tuple[int, int],
    fixed: frozenset[int],
    empty: Tensor,
    steps: int,
) -> Attribution:
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    points, weights = np.concatenate([(nodes + 1) / 2, [1.0, 0.0]]), np.concatenate([weights / 2, [0.0, 0.0]])
    tokens = torch.as_tensor(ids, device=empty.device)
    keep = torch.tensor(sorted(fixed), device=empty.device)
    scores, values = np.zeros(len(ids)), []
    rows = max(1, CHUNK // len(ids))
    for start in range(0, len(points), rows):
        share = torch.as_tensor(points[start : start + rows], dtype=empty.dtype, device=empty.device)
        weight = torch.as_tensor(weights[start : start + rows], device=empty.device)
        batch = tokens.expand(len(share), -1)
        with torch.enable_grad(), _between(_embedding(model), share, keep, empty) as leaves:
            logits = model(batch, torch.ones_like(batch))
            difference = logits[:, labels[0]] - logits[:, labels[1]]
            gradients = torch.autograd.grad(difference.sum(), [point for point, _ in leaves])
        values += difference.tolist()
        for position, (gradient, (_, change)) in enumerate(zip(gradients, leaves, strict=True)):
            parts = ((gradient * change).sum(-1).double() * weight[:, None]).sum(0).cpu().numpy()
            # The decoder of an encoder-decoder reads the tokens one place later, after its start token.
            scores += parts if position == 0 else np.append(parts[1:], 0.0)
    return Attribution(scores, values[-2], values[-1], steps)


@contextmanager
def _between(embedding: nn.Module, share: Tensor, keep: Tensor, empty: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Replace embeddings e by e' + share (e - e'), share (S,); collect those (S, T, C) and e - e' of each call."""
    leaves: list[tuple[Tensor, Tensor]] = []

    def interpolate(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        special = torch.isin(inputs[0], keep)[..., None]
        change = torch.where(special, 0.0, output - empty).detach()
        point = (output.detach() - (1 - share)[:, None, None] * change).requires_grad_()
        leaves.append((point, change))
        return point

    handle = embedding.register_forward_hook(interpolate)
    try:
        yield leaves
    finally:
        handle.remove()


def _embedding(model: SequenceClassifier) -> nn.Embedding:
    trunk = model.trunk.encoder if isinstance(model.trunk, EncoderDecoder) else model.trunk
    assert isinstance(trunk, Transformer)
    return trunk.embed


@torch.no_grad()
def empty_embedding(model: SequenceClassifier, mask_id: int | None) -> Tensor:
    """The embedding of the mask token, which stands for any token in pretraining; without one, the mean of all."""
    weight = _embedding(model).weight
    return (weight.mean(0) if mask_id is None else weight[mask_id]).detach().clone()
