"""Optimizers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest, as one optimizer."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.optim.adamw import adamw

from engine.config import Config
from engine.device import DTYPES, cpu_has_bf16
from model.attention import Attention

# Elements of a Muon group under ZeRO: what a rank gathers at a time, 256 MB in fp32.
GATHERED = 2**26
# Elements that Muon orthogonalises at a time, 64 MB in fp32, and some five times as much while it does.
STACKED = 2**24
# (down, across): a matrix as so many equal pieces, which are orthogonalised each for itself.
Pieces = tuple[int, int]
WHOLE: Pieces = (1, 1)


class OptimConfig(Config):
    """Peak learning rates and what goes with them. `lr` is AdamW's, `muon_lr` is that of the matrices under Muon."""

    # auto: Muon, under DeepSpeed ZeRO too.
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


def make_optimizer(model: nn.Module, config: OptimConfig, stage: int | None, precision: str = "fp32") -> "MuonAdamW":
    """The optimizer for `model`, not yet sharded; `stage` is the ZeRO stage or None, `precision` that of the run."""
    muon = config.name != "adamw"
    groups = parameter_groups(model, config, muon)
    if stage is not None:
        groups = [part for group in groups for part in (_split(group) if "momentum" in group else [group])]
    device = next(model.parameters()).device
    return MuonAdamW(groups, orthogonalize_dtype(device, precision), head_pieces(model))


def head_pieces(model: nn.Module) -> dict[nn.Parameter, Pieces]:
    """The projections of attention, a piece for each head: queries, keys and values in rows, outputs in columns.

    A head is a map of its own: taken so, updates need fewer operations and learn no worse (benchmarks/RESULTS.md).
    """
    pieces: dict[nn.Parameter, Pieces] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                pieces[projection.weight] = (projection.out_features // module.head_dim, 1)
            pieces[module.o_proj.weight] = (1, module.o_proj.in_features // module.head_dim)
    return pieces


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


@dataclass(frozen=True)
class Placement:
    """Where ZeRO has put a matrix of `shape` in the shards of all ranks, gathered into (ranks, elements).

    ZeRO 1 and 2 (width None): one run from `start` on through the shards laid end to end.
    ZeRO 3: `width` elements from `start` on in every rank's shard, the last of them padding.
    """

    shape: torch.Size
    start: int
    width: int | None = None
    pieces: Pieces = WHOLE

    def read(self, shards: Tensor) -> Tensor:
        if self.width is None:
            return shards.view(-1)[self.start : self.start + self.shape.numel()].view(self.shape)
        part = shards[:, self.start : self.start + self.width]
        return part.reshape(-1)[: self.shape.numel()].view(self.shape)

    def part(self, rank: int, size: int) -> tuple[int, int, int]:
        """What a shard of `size` elements holds: (first element of the flattened matrix, where it lies, how many)."""
        elements = self.shape.numel()
        if self.width is not None:
            first = min(rank * self.width, elements)
            return first, self.start, min(self.width, elements - first)
        begin, end = max(self.start, rank * size), min(self.start + elements, (rank + 1) * size)
        return begin - self.start, begin - rank * size, max(0, end - begin)

    def write(self, shards: Tensor, matrix: Tensor) -> None:
        if self.width is None:
            self.read(shards).copy_(matrix)
            return
        padding = len(shards) * self.width - matrix.numel()
        padded = nn.functional.pad(matrix.flatten(), (0, padding))
        shards[:, self.start : self.start + self.width] = padded.view(-1, self.width)


@dataclass(frozen=True)
class ShardedMatrices:
    """What a flat shard is a part of: matrices, over the ranks of a process group, computed on a device."""

    placements: list[Placement]
    group: distributed.ProcessGroup | None
    device: torch.device


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


def cut_shape(shape: torch.Size, pieces: Pieces) -> torch.Size:
    """(N, rows, columns) of a matrix's pieces, rows <= columns."""
    rows, columns = shape[0] // pieces[0], shape[1] // pieces[1]
    return torch.Size((pieces[0] * pieces[1], min(rows, columns), max(rows, columns)))


def _cut(matrix: Tensor, pieces: Pieces) -> Tensor:
    """The pieces of a matrix, transposed where they are tall: (N, rows, columns), rows <= columns."""
    (down, across), (rows, columns) = pieces, matrix.shape
    parts = matrix.reshape(down, rows // down, across, columns // across).transpose(1, 2).flatten(0, 1)
    return parts if parts.size(1) <= parts.size(2) else parts.mT


def _join(parts: Tensor, shape: torch.Size, pieces: Pieces) -> Tensor:
    """Inverse of _cut for a matrix of `shape`."""
    (down, across), (rows, columns) = pieces, shape
    parts = parts if rows // down <= columns // across else parts.mT
    return parts.unflatten(0, pieces).transpose(1, 2).reshape(shape)


def stacks(shapes: list[torch.Size]) -> Iterator[list[int]]:
    """Indices of matrices whose pieces, (N, rows, columns) each, have equal shape: as many as STACKED allows."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        alike[shape[1:]].append(i)
    for found in alike.values():
        stack, elements = [], 0
        for i in found:
            if stack and elements + shapes[i].numel() > STACKED:
                yield stack
                stack, elements = [], 0
            stack.append(i)
            elements += shapes[i].numel()
        yield stack


def muon_updates(matrices: list[Tensor], pieces: list[Pieces], dtype: torch.dtype) -> list[Tensor]:
    """Each matrix with its pieces orthogonalised, its rows of a mean square norm of 1, in new memory."""
    updates: list[Tensor] = [None] * len(matrices)
    cuts = [_cut(matrix, cut) for matrix, cut in zip(matrices, pieces, strict=True)]
    for stack in stacks([parts.shape for parts in cuts]):
        results = orthogonalize(torch.cat([cuts[i] for i in stack]), dtype)
        for i, parts in zip(stack, results.split([len(cuts[i]) for i in stack]), strict=True):
            shape = matrices[i].shape
            updates[i] = _join(parts, shape, pieces[i]) * (shape[0] / (len(parts) * parts.size(1))) ** 0.5
    return updates


def sharded_muon_updates(shard: Tensor, layout: ShardedMatrices, dtype: torch.dtype) -> Tensor:
    """muon_updates of the matrices of which `shard` (elements,) is this rank's part; collective."""
    ranks, rank = distributed.get_world_size(layout.group), distributed.get_rank(layout.group)
    shards = torch.empty(ranks, shard.numel(), dtype=shard.dtype, device=layout.device)
    distributed.all_gather_into_tensor(shards.view(-1), shard.to(layout.device), group=layout.group)
    mine = layout.placements[rank::ranks]
    updates = muon_updates([placement.read(shards) for placement in mine], [p.pieces for p in mine], dtype)
    shards.zero_()
    for placement, update in zip(mine, updates, strict=True):
        placement.write(shards, update)
    # Each element has one rank that computed it and zeros from the others: the sum is exact.
    result = torch.empty_like(shards[rank])
    distributed.reduce_scatter_tensor(result, shards.view(-1), group=layout.group)
    return result.to(shard.device)


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest semi-orthogonal matrices (N, rows <= columns, columns) by the quintic Newton-Schulz iteration of Muon.

    Its coefficients trade exactness for speed (Jordan et al. 2024): after four steps, singular values of more than half
    a percent of the matrix's norm are within about [0.7, 1.2]. A fifth gained nothing (benchmarks/RESULTS.md).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(4):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def orthogonalize_dtype(device: torch.device, precision: str) -> torch.dtype:
    """bf16 for runs in half precision where it is multiplied in hardware: the iteration corrects its own rounding, but
    four steps enlarge a difference in the last bit too far for runs that are to be equal in fp32."""
    in_hardware = device.type == "cuda" or cpu_has_bf16()
    return torch.bfloat16 if DTYPES[precision] != torch.float32 and in_hardware else torch.float32
