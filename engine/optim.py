"""Optimizers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest, as one optimizer."""

from collections import defaultdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from engine.config import Config
from engine.errors import ConfigError
from engine.runtime import cpu_has_bf16


class OptimConfig(Config):
    """Peak learning rates and what goes with them. `lr` is AdamW's, `muon_lr` is that of the matrices under Muon."""

    # auto: Muon, except under DeepSpeed ZeRO, which shards parameters as flat vectors: AdamW.
    name: Literal["auto", "adamw", "muon"] = "auto"
    lr: float = 3e-3
    muon_lr: float = 0.02
    # AdamW's for token and position embeddings; None: lr.
    embedding_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-10
    momentum: float = 0.95
    weight_decay: float = 0.01
    # 0 turns clipping off; the norm is still measured.
    max_grad_norm: float = 1.0


def make_optimizer(model: nn.Module, config: OptimConfig, stage: int | None) -> torch.optim.Optimizer:
    """The optimizer for `model`; `stage` is the ZeRO stage or None. Raises ConfigError for Muon under ZeRO."""
    if config.name == "muon" and stage is not None:
        raise ConfigError("optim.name=muon cannot run under DeepSpeed ZeRO (flat shards); use optim.name=adamw")
    muon = config.name == "muon" or (config.name == "auto" and stage is None)
    groups = parameter_groups(model, config, muon)
    if muon:
        return MuonAdamW(groups)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


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
    groups = [
        {"params": matrices, "lr": matrix_lr, "weight_decay": config.weight_decay, **adam},
        {"params": tables, "lr": config.lr, "weight_decay": config.weight_decay, **adam},
        {"params": embeddings, "lr": config.embedding_lr, "weight_decay": config.weight_decay, **adam},
        {"params": vectors, "lr": config.lr, "weight_decay": 0.0, **adam},
    ]
    if muon:
        groups[0]["momentum"] = config.momentum
    return [group for group in groups if group["params"]]


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups that have a `momentum`, AdamW (Loshchilov and Hutter 2019) for the others.

    Muon: Nesterov momentum, then the update is replaced by the nearest semi-orthogonal matrix, scaled by
    sqrt(max(1, rows / columns)). Matrices of equal shape are stacked and orthogonalised in one batched product.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if "momentum" in group:
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        stacks: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p in parameters:
            stacks[min(p.shape), max(p.shape)].append(p)
        for stack in stacks.values():
            updates = []
            for p in stack:
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])
                updates.append(update if p.size(0) <= p.size(1) else update.T)
            for p, update in zip(stack, orthogonalize(torch.stack(updates)), strict=True):
                scale = max(1.0, p.size(0) / p.size(1)) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update if p.size(0) <= p.size(1) else update.T, alpha=-group["lr"] * scale)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
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


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices (N, rows <= columns, columns) by the quintic Newton-Schulz iteration of Muon.

    Its coefficients trade exactness for speed: singular values end within about [0.7, 1.2] (Jordan et al. 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(orthogonalize_dtype(matrices.device))
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)


def orthogonalize_dtype(device: torch.device) -> torch.dtype:
    """bf16 where it is multiplied in hardware; the iteration corrects its own rounding."""
    return torch.bfloat16 if device.type == "cuda" or cpu_has_bf16() else torch.float32
