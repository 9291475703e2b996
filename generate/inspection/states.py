"""Record what a model computes: attention maps, hidden states of each layer, logit lens and gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mini_llm.model import CausalLM, MaskedLM, Model, Seq2SeqLM
from mini_llm.model.attention import Attention
from mini_llm.model.config import ModelConfig
from mini_llm.model.layers import DecoderLayer, EncoderLayer
from mini_llm.model.transformer import Transformer

LanguageModel = CausalLM | MaskedLM | Seq2SeqLM
BEST = 5  # predictions kept per position


@dataclass
class Maps:
    """The attention maps of one stack of layers for one text.

    `queries` and `keys` name the two token sequences. Shapes: weights (L, H, T, S), where every row sums to 1; entropy
    (L, H), see normalized_entropy.
    """

    name: str
    queries: str
    keys: str
    weights: Tensor
    entropy: Tensor


@dataclass
class Lens:
    """The logit lens: predictions from the states at `positions` (P), before the first and after each of L layers.

    ids and probabilities: (L + 1, P, up to 5), best first. `expected` (P) holds the correct token, or None if it is
    unknown. `chances` (L + 1, P) is its probability, or 0 if it is unknown.
    """

    sequence: str
    positions: list[int]
    ids: Tensor
    probabilities: Tensor
    expected: list[int | None]
    chances: Tensor


@dataclass
class Decision:
    """The decision of a classifier. probabilities: (N,), of all labels. For the most probable `labels`: their log-odds
    `targets` (labels,) and the attributions of the tokens, `scores` (labels, T); see attribute."""

    names: list[str]
    probabilities: Tensor
    labels: list[int]
    targets: Tensor
    scores: Tensor


class Recorder:
    """Context manager that records one forward pass of one text through `trunk`.

    `states` are (1, T, C): the input of the first layer, then the output of each. The first is a leaf that requires
    gradients if they are enabled. Attention runs its explicit path and keeps its weights.
    """

    def __init__(self, trunk: Transformer) -> None:
        self.trunk = trunk
        self.states: list[Tensor] = []
        self._layers = [block for block in trunk.blocks if isinstance(block, EncoderLayer | DecoderLayer)]
        self._crossing = [layer.cross for layer in self._layers if trunk.config.cross_attention]

    def __enter__(self) -> "Recorder":
        self._hooks = [self._layers[0].register_forward_pre_hook(self._enter)]
        self._hooks += [layer.register_forward_hook(self._leave) for layer in self._layers]
        self._keep(True)
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._keep(False)

    def _keep(self, value: bool) -> None:
        for attention in (*(layer.attn for layer in self._layers), *self._crossing):
            attention.keep_weights = value

    def _enter(self, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        first = inputs[0].detach().requires_grad_(torch.is_grad_enabled())
        self.states = [first]
        return (first, *inputs[1:])

    def _leave(self, block: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.states.append(output)

    def maps(self, name: str, sequence: str) -> Maps:
        """Return the self-attention maps over `sequence`."""
        weights = _stack([layer.attn for layer in self._layers])
        config, length = self.trunk.config, weights.size(-1)
        seen = torch.stack([keys_seen(config, layer, length) for layer in range(config.num_hidden_layers)])
        return Maps(name, sequence, sequence, weights, normalized_entropy(weights, seen))

    def cross_maps(self, name: str, queries: str, keys: str) -> Maps:
        """Return the cross-attention maps from `queries` to `keys`."""
        weights = _stack(self._crossing)
        seen = torch.full((len(weights), weights.size(-2)), weights.size(-1))
        return Maps(name, queries, keys, weights, normalized_entropy(weights, seen))


def _stack(attentions: list[Attention]) -> Tensor:
    """The kept weights of one text in each layer: (L, H, T, S)."""
    return torch.stack([attention.weights[0].detach() for attention in attentions if attention.weights is not None])


def keys_seen(config: ModelConfig, layer: int, length: int) -> Tensor:
    """Return how many positions each of `length` queries may attend to in a layer, itself included: (T,)."""
    at = torch.arange(length)
    local = config.layer_types[layer] == "sliding_attention"
    window = config.sliding_window if local and config.sliding_window else length
    if config.causal:
        return (at + 1).clamp(max=window)
    return (at + window).clamp(max=length - 1) - (at - window).clamp(min=0) + 1


def normalized_entropy(weights: Tensor, seen: Tensor) -> Tensor:
    """Return the entropy of weights (L, H, T, S) relative to uniform attention over the `seen` (L, T) keys: (L, H).

    Averages over the queries that see more than one key: 0 if each attends to one key, 1 if to all equally.
    """
    entropy = torch.special.entr(weights).sum(-1)  # L H T
    choice = seen > 1
    shares = (entropy / seen.clamp(min=2).log()[:, None]) * choice[:, None]
    return shares.sum(-1) / choice.sum(-1, keepdim=True).clamp(min=1)


def logit_lens(
    model: LanguageModel, recorder: Recorder, sequence: str, positions: list[int], expected: Sequence[int | None]
) -> Lens:
    """Apply the final norm and the vocabulary head to every recorded state (nostalgebraist 2020, "logit lens").

    The last state gives the prediction of the model itself.
    """
    best, chances = [], []
    wanted = torch.tensor([0 if token is None else token for token in expected])
    known = torch.tensor([token is not None for token in expected])
    for state in recorder.states:
        probabilities = model.predict(recorder.trunk.norm(state[0, positions])).softmax(-1)  # P V
        best.append(probabilities.topk(min(BEST, probabilities.size(-1))))
        chances.append(probabilities.gather(-1, wanted[:, None])[:, 0] * known)
    return Lens(
        sequence,
        positions,
        torch.stack([top.indices for top in best]),
        torch.stack([top.values for top in best]),
        list(expected),
        torch.stack(chances),
    )


def attribute(logits: Tensor, recorders: Sequence[Recorder], labels: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Gradient times input (Shrikumar et al. 2016) of the log-odds of `labels`, from logits (N).

    The input is that of the first layer, after embedding, position and embedding norm: before the norm, the gradient
    would not see the length of a vector. Returns the log-odds (labels,) and, for each recorder, the scores (labels, T).
    Scores are a first-order approximation and need not sum to the log-odds. A model with a single output uses its value
    instead of log-odds.
    """
    inputs = [recorder.states[0] for recorder in recorders]
    targets, scores = [], []
    for label in labels:
        others = torch.cat((logits[:label], logits[label + 1 :]))
        target = logits[label] - others.logsumexp(0) if len(others) else logits[label]
        gradients = torch.autograd.grad(target, inputs, retain_graph=True)
        targets.append(target.detach())
        scores.append([(g * x).sum(-1)[0].detach() for g, x in zip(gradients, inputs, strict=True)])
    return torch.stack(targets), [torch.stack(rows) for rows in zip(*scores, strict=True)]


@dataclass
class Inspection:
    """What one model computed for one text; `sequences` holds token ids by name ("text", or "source" and "target")."""

    model: Model
    sequences: dict[str, list[int]]
    maps: list[Maps] = field(default_factory=list)
    lens: Lens | None = None
    decision: Decision | None = None
    notes: list[str] = field(default_factory=list)
