"""The optimizer: AdamW for all parameters, or Muon for the hidden matrices and AdamW for the rest."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mini_llm.engine.muon import (
    GATHERED,
    WHOLE,
    Pieces,
    ShardedMatrices,
    cut_shape,
    head_pieces,
    muon_updates,
    orthogonalize_dtype,
    sharded_muon_updates,
    stacks,
)
from mini_llm.engine.settings import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig, stage: int | None, precision: str = "fp32") -> "MuonAdamW":
    """The optimizer for `model`, not yet sharded. `stage`: ZeRO stage or None; `precision`: that of the run."""
    groups = parameter_groups(model, config, muon=config.name != "adamw")
    if stage is not None:
        groups = [part for group in groups for part in (_split(group) if "momentum" in group else [group])]
    device = next(model.parameters()).device
    return MuonAdamW(groups, orthogonalize_dtype(device, precision), head_pieces(model))


def parameter_groups(model: nn.Module, config: OptimConfig, muon: bool) -> list[dict[str, Any]]:
    """Hidden matrices, embeddings and heads, and vectors. Vectors (norms, biases) have no weight decay."""
    matrices, embeddings, tables, vectors = [], [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            vectors.append(parameter)
        elif ".blocks." in name:
            matrices.append(parameter)
        elif config.embedding_lr is not None and ".embed" in name:
            embeddings.append(parameter)
        else:
            tables.append(parameter)
    matrix_lr = config.muon_lr if muon else config.lr
    adam = {"betas": config.betas, "eps": config.eps}
    decay = config.weight_decay
    groups: list[dict[str, Any]] = [
        {"name": "matrices", "params": matrices, "lr": matrix_lr, "weight_decay": decay, **adam},
        {"name": "tables and heads", "params": tables, "lr": config.lr, "weight_decay": decay, **adam},
        {"name": "embeddings", "params": embeddings, "lr": config.embedding_lr, "weight_decay": decay, **adam},
        {"name": "vectors", "params": vectors, "lr": config.lr, "weight_decay": 0.0, **adam},
    ]
    if muon:
        groups[0]["momentum"] = config.momentum
    return [group for group in groups if group["params"]]


def _split(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a group into groups of at most GATHERED elements (or one parameter): ZeRO steps group by group."""
    parts: list[list[Tensor]] = [[]]
    for parameter in group["params"]:
        if parts[-1] and sum(p.numel() for p in parts[-1]) + parameter.numel() > GATHERED:
            parts.append([])
        parts[-1].append(parameter)
    return [{**group, "params": part} for part in parts]


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups that have a `momentum`, AdamW (Loshchilov and Hutter 2019) for the others.

    Muon replaces the Nesterov momentum by the nearest semi-orthogonal matrix, scaled so that its rows have a mean
    square norm of 1. Matrices of equal shape are stacked and orthogonalized in one batched product.

    Under DeepSpeed ZeRO, each parameter is a rank's flat fp32 shard, after clipping. Everything but the
    orthogonalization is elementwise; for that, the shards are gathered as described by `sharded`, each rank computes
    some of the matrices, and every rank gets its shard of the results. DeepSpeed's own Muon (0.19.8) clips the
    orthogonalized update instead of the gradient, and keeps the momentum in the dtype and layout of its gradients.
    """

    # The undecorated methods: torch's decorators import the front end of torch.compile on first use, which takes 1 s.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(
        self,
        groups: list[dict[str, Any]],
        dtype: torch.dtype = torch.float32,
        pieces: dict[Tensor, Pieces] | None = None,
    ) -> None:
        """`dtype`: used by the orthogonalization; `pieces`: of the matrices that are orthogonalized in pieces."""
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.dtype = dtype
        self.pieces = pieces or {}
        self.sharded: dict[Tensor, ShardedMatrices] = {}

    def create_state(self) -> None:
        """Allocate the state before the first step: allocated between activations and gradients, it would fragment
        the heap on a CPU."""
        for group in self.param_groups:
            for p in group["params"]:
                self._state(p, group)

    def _state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of a parameter, created if necessary."""
        if not self.state[p] and "momentum" in group:
            self.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        elif not self.state[p]:
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # ty: ignore[incompatible-method-override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if "momentum" in group:
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if self.sharded:
            for p in parameters:
                update = sharded_muon_updates(self._nesterov(p, group), self.sharded[p], self.dtype)
                _descend(p, update, group)
            return
        pieces = [self.pieces.get(p, WHOLE) for p in parameters]
        for stack in stacks([cut_shape(p.shape, grid) for p, grid in zip(parameters, pieces, strict=True)]):
            directions = [self._nesterov(parameters[i], group) for i in stack]
            updates = muon_updates(directions, [pieces[i] for i in stack], self.dtype)
            for i, update in zip(stack, updates, strict=True):
                _descend(parameters[i], update, group)

    def _nesterov(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov momentum (Sutskever et al. 2013), with an exponential moving average of the gradients."""
        momentum = self._state(parameter, group)["momentum_buffer"]
        assert parameter.grad is not None
        momentum.lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(momentum, group["momentum"])

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(p, group) for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _descend(parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
    """Decoupled weight decay, then the update."""
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(update, alpha=-group["lr"])
