"""Optimizers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest, as one optimizer."""

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
    """The optimizer for `model`, not yet sharded; `stage` is the ZeRO stage or None, `precision` that of the run."""
    muon = config.name != "adamw"
    groups = parameter_groups(model, config, muon)
    if stage is not None:
        groups = [part for group in groups for part in (_split(group) if "momentum" in group else [group])]
    device = next(model.parameters()).device
    return MuonAdamW(groups, orthogonalize_dtype(device, precision), head_pieces(model))


def _split(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The same settings for groups of at most GATHERED elements (or one parameter): ZeRO steps group by group."""
    parts: list[list[Tensor]] = [[]]
    for parameter in group["params"]:
        if parts[-1] and sum(p.numel() for p in parts[-1]) + parameter.numel() > GATHERED:
            parts.append([])
        parts[-1].append(parameter)
    return [{**group, "params": part} for part in parts]


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
    groups = [
        {"name": "matrices", "params": matrices, "lr": matrix_lr, "weight_decay": decay, **adam},
        {"name": "tables and heads", "params": tables, "lr": config.lr, "weight_decay": decay, **adam},
        {"name": "embeddings", "params": embeddings, "lr": config.embedding_lr, "weight_decay": decay, **adam},
        {"name": "vectors", "params": vectors, "lr": config.lr, "weight_decay": 0.0, **adam},
    ]
    if muon:
        groups[0]["momentum"] = config.momentum
    return [group for group in groups if group["params"]]


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups that have a `momentum`, AdamW (Loshchilov and Hutter 2019) for the others.

    Muon: Nesterov momentum, then the update is replaced by the nearest semi-orthogonal matrix, scaled so that its rows
    have a mean square norm of 1. Matrices of equal shape are stacked and orthogonalised in one batched product.

    Under DeepSpeed ZeRO a parameter is a rank's flat fp32 shard, after clipping. All of it is elementwise but the
    orthogonalisation: for that the shards are gathered as `sharded` says, each rank computes its share of the matrices,
    and every rank gets its shard of the results. DeepSpeed's own Muon (0.19.8) clips the orthogonalised update instead
    of the gradient, and keeps momentum in the type and layout of its gradients.
    """

    # torch's own import torch.compile's front end when they are first called, which takes a second.
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__

    def __init__(
        self,
        groups: list[dict[str, Any]],
        dtype: torch.dtype = torch.float32,
        pieces: dict[nn.Parameter, Pieces] | None = None,
    ) -> None:
        """`dtype`: what matrices are orthogonalised in; `pieces`: of those that are more than one."""
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.dtype = dtype
        self.pieces = pieces or {}
        self.sharded: dict[Tensor, ShardedMatrices] = {}

    def create_state(self) -> None:
        """Before the first step: between activations and gradients, on a CPU, it would leave holes in the heap."""
        for group in self.param_groups:
            for p in group["params"]:
                self._moments(p, group)

    def _moments(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        if not self.state[p] and "momentum" in group:
            self.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        elif not self.state[p]:
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if "momentum" in group:
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if self.sharded:
            for p in parameters:
                update = sharded_muon_updates(self._direction(p, group), self.sharded[p], self.dtype)
                _descend(p, update, group)
            return
        pieces = [self.pieces.get(p, WHOLE) for p in parameters]
        for stack in stacks([cut_shape(p.shape, cut) for p, cut in zip(parameters, pieces, strict=True)]):
            directions = [self._direction(parameters[i], group) for i in stack]
            updates = muon_updates(directions, [pieces[i] for i in stack], self.dtype)
            for i, update in zip(stack, updates, strict=True):
                _descend(parameters[i], update, group)

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov momentum (Sutskever et al. 2013), as an average of gradients."""
        momentum = self._moments(parameter, group)["momentum_buffer"]
        momentum.lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(momentum, group["momentum"])

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._moments(p, group) for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
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
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(update, alpha=-group["lr"])
