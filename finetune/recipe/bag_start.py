"""Start a classifier of averaged states as a bag of tokens (fastText; Joulin et al. 2017).

Without its layers, an encoder that averages the states of its tokens is a bag of tokens: a state is a function of its
token alone. So all states are computed once per step, a text is an average of rows of that table, and tens of thousands
of whole texts are read in seconds, where the layers read a few hundred. Embeddings and head learn this way. The output
projections of the layers are then set to zero (as in Fixup; Zhang et al. 2019): the model is that bag at first, and
training adds context to it.

A model that was pretrained for long knows more than a bag of tokens. So the bag is kept only where it is better on
held-out texts than the output layer that was fitted to the features of the whole model, only in small models that have
seen few tokens, and only for few steps: from about a thousand on, the pretrained layers are worth as much.

Shapes: N texts, C classes, V vocabulary, H features.
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.model import SequenceClassifier
from mini_llm.model.transformer import Transformer

from .pretrained_tokens import LARGEST_WIDTH, pretrained_briefly

FEWEST_TEXTS, MOST_STEPS = 50, 1500
HELD_OUT, MOST_HELD_OUT = 0.1, 1000
BATCH = 256
STEPS, EPOCHS = (300, 1000), 5
# The number of steps fills SHARE of the budget at an assumed speed (multiply-adds per second of one core). On a slower
# or busy machine, where TIMED_STEPS are timed first, they take at most MOST_SHARE.
SHARE, SPEED = 0.05, 4e9
MOST_SHARE, TIMED_STEPS = 0.15, 5
LR, HEAD_LR = 2e-3, 1e-3
KEPT_TOKENS = 0.5  # share of the tokens of a text that a step reads, against overfitting
EVALUATIONS = 12


class Start(BaseModel):
    """start.json: whether the run starts as a bag of tokens, its steps, how often an epoch holds a labelled text, and
    the number of mixed texts.

    The first two depend on the speed of the machine; runs of earlier releases have not recorded the others.
    """

    bag: bool
    bag_steps: PositiveInt | None = None
    labelled_copies: PositiveInt = 1
    mixed_texts: NonNegativeInt = 0


def start_as_bag(
    model: SequenceClassifier,
    tokens: Sequence[np.ndarray],
    targets: Tensor,
    loss_to_beat: float,
    budget_seconds: float | None,
    seed: int,
    known: Start | None = None,
    agree: Callable[[int], int] = int,
) -> tuple[str, Start] | None:
    """Train embeddings and head of `model` as a bag of tokens; targets: distributions (N, C) of `tokens`.

    Changes the model only if the cross-entropy of held-out texts becomes smaller than `loss_to_beat`. `known`: what an
    earlier launch of the run has found. `agree` returns the first rank's number. Returns a note and how the model
    starts, or None where the budget is too short.
    """
    order = np.random.default_rng(seed).permutation(len(tokens))
    count = min(MOST_HELD_OUT, round(HELD_OUT * len(tokens)))
    held_out, train = order[:count], order[count:]
    steps = _steps(model, tokens, train, budget_seconds)
    if steps < STEPS[0] // 3:
        return None
    bag = Bag(model)
    if known is not None and known.bag_steps:
        steps = known.bag_steps
    elif known is None and budget_seconds is not None:
        steps = agree(min(steps, int(MOST_SHARE * budget_seconds / bag.seconds_per_step(tokens, targets, train))))
        if steps < STEPS[0] // 3:
            return None
    loss, best = bag.fit(tokens, targets, train, held_out, steps, seed)
    found = f"loss on {count:,} held-out texts: as a bag of tokens {loss:.3f}, as pretrained {loss_to_beat:.3f}"
    if not loss < loss_to_beat:
        return f"{found}: starts as pretrained", Start(bag=False)
    bag.load_state_dict(best)
    bag.write(model)
    return f"{found}: starts as a bag of tokens", Start(bag=True, bag_steps=steps)


def can_start_as_bag(model: SequenceClassifier, source: Path, texts: int, steps: float) -> bool:
    """Whether the model, pretrained in the directory `source`, is one that the method is for.

    Its texts are averages of states, which depend on nothing but their token where the layers are left out, the run
    that made it read few tokens for its parameters, and `steps` of fine-tuning are few.
    """
    config, trunk = model.config, model.trunk
    alone = isinstance(trunk, Transformer) and config.position == "rotary" and not config.type_vocab_size
    average = config.classifier_pooling == "mean" and config.classifier_head == "transform"
    little = config.hidden_size < LARGEST_WIDTH and pretrained_briefly(source) and steps <= MOST_STEPS
    return alone and average and little and texts >= FEWEST_TEXTS


def _steps(
    model: SequenceClassifier, tokens: Sequence[np.ndarray], train: np.ndarray, budget_seconds: float | None
) -> int:
    """The number of steps on a machine of the assumed speed."""
    config = model.config
    length = np.mean([len(tokens[i]) for i in train[:1000]])
    seconds = (4 * BATCH * length * KEPT_TOKENS + 40 * config.vocab_size) * config.hidden_size / SPEED
    wanted = min(max(STEPS[0], EPOCHS * len(train) // BATCH), STEPS[1])
    return wanted if budget_seconds is None else min(wanted, int(SHARE * budget_seconds / seconds))


class Bag(nn.Module):
    """Copies of all parts of a classifier except its layers."""

    def __init__(self, model: SequenceClassifier) -> None:
        super().__init__()
        self.scale = model.config.embedding_scale
        self.trunk = _copies(model.trunk, ("embed", "embed_norm", "norm"))
        self.head = _copies(model, ("head", "classifier"))

    def forward(self, ids: Tensor, starts: Tensor) -> Tensor:
        """Logits (B, C) of texts that begin at `starts` (B,) of `ids`."""
        states = self.trunk["norm"](
            self.trunk["embed_norm"](self.trunk.get_parameter("embed.weight") * self.scale)
        )  # V H
        pooled = F.embedding_bag(ids, states, starts, mode="mean")  # B H
        return self.head["classifier"](self.head["head"](pooled))

    def seconds_per_step(self, tokens: Sequence[np.ndarray], targets: Tensor, train: np.ndarray) -> float:
        """Return the seconds of one training step, timed on a copy."""
        copied = copy.deepcopy(self)
        copied.fit(tokens, targets, train, train[:1], 1, 0)
        started = time.perf_counter()
        copied.fit(tokens, targets, train, train[:1], TIMED_STEPS, 0)
        return (time.perf_counter() - started) / TIMED_STEPS

    def fit(
        self,
        tokens: Sequence[np.ndarray],
        targets: Tensor,
        train: np.ndarray,
        held_out: np.ndarray,
        steps: int,
        seed: int,
    ) -> tuple[float, dict[str, Tensor]]:
        """Train on the texts `train`; return the smallest loss on `held_out`, and the weights that had it."""
        generator = np.random.default_rng(seed)
        groups = [{"params": self.trunk.parameters(), "lr": LR}, {"params": self.head.parameters(), "lr": HEAD_LR}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        every, best = max(1, steps // EVALUATIONS), (float("inf"), {})
        texts = train[:0]
        for step in range(1, steps + 1):
            if len(texts) < min(BATCH, len(train)):
                texts = generator.permutation(train)
            rows, texts = texts[:BATCH], texts[BATCH:]
            logits = self(*_joined([_some(tokens[i], generator) for i in rows]))
            F.cross_entropy(logits, targets[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % every == 0 and (loss := self.loss(tokens, targets, held_out)) < best[0]:
                best = loss, {name: value.clone() for name, value in self.state_dict().items()}
        return best

    @torch.no_grad()
    def loss(self, tokens: Sequence[np.ndarray], targets: Tensor, rows: np.ndarray) -> float:
        return F.cross_entropy(self(*_joined([tokens[i] for i in rows])), targets[rows]).item()

    @torch.no_grad()
    def write(self, model: SequenceClassifier) -> None:
        """Copy the weights into `model`, whose layers add nothing to the residual stream at first."""
        for source, target in ((self.trunk, model.trunk), (self.head, model)):
            for name, part in source.items():
                getattr(target, name).load_state_dict(part.state_dict())
        for name, weight in model.trunk.named_parameters():
            if name.startswith("blocks.") and name.split(".")[-2] in ("o_proj", "down_proj"):
                weight.zero_()


def _copies(model: nn.Module, names: Sequence[str]) -> nn.ModuleDict:
    """Copies of some parts of `model`, on the CPU."""
    return copy.deepcopy(nn.ModuleDict({name: getattr(model, name) for name in names})).cpu()


def _some(text: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random part of the tokens of a text, at least one."""
    kept = generator.random(len(text)) < KEPT_TOKENS
    kept[generator.integers(len(text))] = True
    return text[kept]


def _joined(texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """All tokens in a row, and where each text begins."""
    starts = np.cumsum([0, *map(len, texts[:-1])])
    return torch.from_numpy(np.concatenate(texts)), torch.from_numpy(starts)
