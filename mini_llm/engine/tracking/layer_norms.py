"""Norms and histograms of gradients and updates by layer, every few steps.

They are read in hooks before and after the optimizer's step and change nothing: the weights have the same bits.
"""

import math
import re
import sys
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from mini_llm.engine.distributed.zero import innermost, unwrap
from mini_llm.engine.step import TrainContext
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.engine.tracking.wandb_mirror import Histogram

BINS = 64
_LAYER = re.compile(r"(.*?\bblocks\.\d+)\.")


class LayerNorms:
    """Records the layers of a model in the steps that tracking.norms_every and tracking.histograms_every name.

    Call `begin` before a step and `record` after it. Does nothing on other ranks than the first, and under ZeRO, where
    a rank has only a shard of each gradient.
    """

    def __init__(self, context: TrainContext, tracker: Tracker) -> None:
        self._tracker, self._settings = tracker, tracker.settings
        self._norms = self._histograms = False
        self._before: dict[str, list[Tensor]] = {}
        self._gradients: dict[str, float] = {}
        self._updates: dict[str, float] = {}
        self._drawn: dict[str, Histogram] = {}
        self._layers: dict[str, list[nn.Parameter]] = {}
        if not (tracker.main_process and self._settings.by_layer):
            return
        if context.accelerator.distributed_type == "DEEPSPEED":
            print("tracking.norms_every and tracking.histograms_every do nothing under DeepSpeed", file=sys.stderr)
            return
        self._layers = by_layer(unwrap(context.model))
        optimizer = innermost(context.optimizer)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def begin(self, step: int) -> None:
        """Prepare for `step`, counted from 1."""
        if self._layers:
            self._norms = _is_due(step, self._settings.norms_every)
            self._histograms = _is_due(step, self._settings.histograms_every)
            self._gradients, self._updates, self._drawn = {}, {}, {}

    def record(self, step: int, norm: float) -> None:
        """Record what `step` has left; `norm` is the norm of the whole gradient before it was clipped."""
        if not self._gradients:
            return  # another step than those asked for, or one that was skipped
        clipped = sum(value**2 for value in self._gradients.values()) ** 0.5
        scale = norm / clipped if clipped else 1.0
        norms = {}
        if self._norms:
            norms |= {f"grad_norm/{name}": scale * value for name, value in self._gradients.items()}
            norms |= {f"update_norm/{name}": value for name, value in self._updates.items()}
        self._tracker.layers(step, norms, self._drawn)

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        if not (self._norms or self._histograms):
            return
        gradients = {
            name: [parameter.grad for parameter in parameters if parameter.grad is not None]
            for name, parameters in self._layers.items()
        }
        self._gradients = {name: norm_of(tensors) for name, tensors in gradients.items()}
        if self._norms:
            self._before = {name: [p.detach().clone() for p in layer] for name, layer in self._layers.items()}
        if self._histograms:
            drawn = {f"gradient/{name}": histogram_of(tensors) for name, tensors in gradients.items()}
            drawn |= {f"weight/{name}": histogram_of(list(layer)) for name, layer in self._layers.items()}
            self._drawn = {name: histogram for name, histogram in drawn.items() if histogram is not None}

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        for name, before in self._before.items():
            self._updates[name] = norm_of([p - old for p, old in zip(self._layers[name], before, strict=True)])
        self._before = {}


def by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained parameters by layer: "decoder.blocks.0", and the modules outside the blocks, "decoder.embed"."""
    layers: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            block = _LAYER.match(name)
            layers[block[1] if block else name.rpartition(".")[0] or name].append(parameter)
    return dict(layers)


def norm_of(tensors: list[Tensor]) -> float:
    """The Euclidean norm of all elements of `tensors` together."""
    if not tensors:
        return 0.0
    return float(torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]).norm())


def histogram_of(tensors: list[Tensor]) -> Histogram | None:
    """A histogram of all elements with BINS bins from the smallest to the largest; None if one is not finite."""
    if not tensors:
        return None
    low = min(float(tensor.min()) for tensor in tensors)
    high = max(float(tensor.max()) for tensor in tensors)
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    counts = torch.stack([torch.histc(tensor.detach().float(), BINS, low, high) for tensor in tensors]).sum(0)
    return [int(count) for count in counts.tolist()], low, high


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
