"""Parameter counts of a model, taken from one built on the meta device: shapes without storage."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mini_llm.engine.muon import WHOLE, cut_shape, head_pieces
from mini_llm.engine.optim import parameter_groups
from mini_llm.engine.settings import OptimConfig
from mini_llm.model import HEADS, ModelConfig

from ..presets import shape_of

RANDOM_INITIALIZERS = {"kaiming_uniform_", "xavier_uniform_", "uniform_", "normal_"}


@dataclass(frozen=True)
class Parameters:
    """Numbers of elements; tied parameters count once.

    matrices: the weights that Muon updates, by (rows, columns) with the shorter side first. pieces: the same weights by
    the shapes that Muon orthogonalizes, since it cuts attention projections into heads. vectors: norms and biases.
    largest: the largest single parameter.
    """

    total: int
    vectors: int
    largest: int
    matrices: Counter[tuple[int, int]]
    pieces: Counter[tuple[int, int]]

    @property
    def hidden(self) -> int:
        """Elements that Muon updates."""
        return self.matrices.total()


class _SkipInitializers(TorchFunctionMode):
    """On the meta device they change nothing, but load sympy and torch._dynamo, which takes 1.8 s."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM_INITIALIZERS:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def count_parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of the model that is pretrained with `config`, including its vocabulary head."""
    with torch.device("meta"), _SkipInitializers():
        model = HEADS[shape_of(config.causal, config.is_encoder_decoder)](config)
    sizes = [parameter.numel() for parameter in model.parameters()]
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() < 2)
    matrices: Counter[tuple[int, int]] = Counter()
    pieces: Counter[tuple[int, int]] = Counter()
    cuts = head_pieces(model)
    for group in parameter_groups(model, OptimConfig(), muon=True):
        for parameter in group["params"] if "momentum" in group else ():
            matrices[cut_shape(parameter.shape, WHOLE)[1:]] += parameter.numel()
            pieces[cut_shape(parameter.shape, cuts.get(parameter, WHOLE))[1:]] += parameter.numel()
    return Parameters(sum(sizes), vectors, max(sizes), matrices, pieces)
