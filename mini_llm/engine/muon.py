"""Muon (Jordan et al. 2024): the momentum of hidden matrices, orthogonalized by Newton-Schulz iterations."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from mini_llm.engine.device import DTYPES, cpu_prefers_bf16
from mini_llm.model.attention import Attention

# Elements that are orthogonalized at a time: 64 MB in fp32, and about five times as much during the iteration.
STACKED = 2**24

# Elements of one Muon parameter group under ZeRO, which a rank gathers at a time: 256 MB in fp32.
GATHERED = 2**26

# (down, across): a matrix as a grid of equal pieces, each orthogonalized by itself.
Pieces = tuple[int, int]

WHOLE: Pieces = (1, 1)


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices (N, rows <= columns, columns), computed in `dtype`.

    Uses Muon's quintic Newton-Schulz iteration, whose coefficients trade exactness for speed (Jordan et al. 2024):
    after four steps, singular values above half a percent of the matrix's norm are within about [0.7, 1.2]. A fifth
    step gained nothing (docs/LOG.md).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(4):
        gram = x @ x.mT
        # a x + (b gram + c gram^2) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def orthogonalize_dtype(device: torch.device, precision: str) -> torch.dtype:
    """bf16 for runs in half precision if the hardware multiplies it, else fp32.

    The iteration corrects its own rounding errors, but four steps amplify a difference in the last bit too much for
    fp32 runs that should agree with each other.
    """
    in_hardware = device.type == "cuda" or cpu_prefers_bf16()
    return torch.bfloat16 if DTYPES[precision] != torch.float32 and in_hardware else torch.float32


def muon_updates(matrices: list[Tensor], pieces: list[Pieces], dtype: torch.dtype) -> list[Tensor]:
    """Orthogonalize the pieces of each matrix and scale its rows to a mean square norm of 1; returns new tensors."""
    updates: dict[int, Tensor] = {}
    cuts = [_cut(matrix, grid) for matrix, grid in zip(matrices, pieces, strict=True)]
    for stack in stacks([parts.shape for parts in cuts]):
        results = orthogonalize(torch.cat([cuts[i] for i in stack]), dtype)
        for i, parts in zip(stack, results.split([len(cuts[i]) for i in stack]), strict=True):
            shape = matrices[i].shape
            # A semi-orthogonal piece has a squared norm of min(rows, columns) = parts.size(1).
            updates[i] = _join(parts, shape, pieces[i]) * (shape[0] / (len(parts) * parts.size(1))) ** 0.5
    return [updates[i] for i in range(len(matrices))]


def head_pieces(model: nn.Module) -> dict[Tensor, Pieces]:
    """One piece per head for the attention projections: rows of queries, keys and values, columns of outputs.

    Each head is a linear map of its own. Orthogonalizing heads separately needs fewer operations and trains no worse
    (docs/LOG.md).
    """
    pieces: dict[Tensor, Pieces] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                pieces[projection.weight] = (projection.out_features // module.head_dim, 1)
            pieces[module.o_proj.weight] = (1, module.o_proj.in_features // module.head_dim)
    return pieces


def cut_shape(shape: torch.Size, pieces: Pieces) -> torch.Size:
    """(N, rows, columns) of the pieces of a matrix of `shape`, rows <= columns."""
    rows, columns = shape[0] // pieces[0], shape[1] // pieces[1]
    return torch.Size((pieces[0] * pieces[1], min(rows, columns), max(rows, columns)))


def _cut(matrix: Tensor, pieces: Pieces) -> Tensor:
    """The pieces of a matrix (N, rows, columns), transposed if they are tall, so that rows <= columns."""
    (down, across), (rows, columns) = pieces, matrix.shape
    parts = matrix.reshape(down, rows // down, across, columns // across).transpose(1, 2).flatten(0, 1)
    return parts if parts.size(1) <= parts.size(2) else parts.mT


def _join(parts: Tensor, shape: torch.Size, pieces: Pieces) -> Tensor:
    """The inverse of _cut for a matrix of `shape`."""
    (down, across), (rows, columns) = pieces, shape
    parts = parts if rows // down <= columns // across else parts.mT
    return parts.unflatten(0, pieces).transpose(1, 2).reshape(shape)


def stacks(shapes: list[torch.Size]) -> Iterator[list[int]]:
    """Group matrices, given the shapes (N, rows, columns) of their pieces, into lists of indices.

    A group holds pieces of equal shape and at most STACKED elements, or a single matrix.
    """
    equal: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        equal[shape[1:]].append(i)
    for indices in equal.values():
        stack: list[int] = []
        elements = 0
        for i in indices:
            if stack and elements + shapes[i].numel() > STACKED:
                yield stack
                stack, elements = [], 0
            stack.append(i)
            elements += shapes[i].numel()
        yield stack


@dataclass(frozen=True)
class Placement:
    """Where ZeRO stores a matrix of `shape` in the shards of all ranks, gathered into (ranks, elements).

    ZeRO 1 and 2 (width None): one range that begins at `start` of all shards laid end to end.
    ZeRO 3: `width` elements from `start` in the shard of every rank, padded at the end.
    """

    shape: torch.Size
    start: int
    width: int | None = None
    pieces: Pieces = WHOLE

    def read(self, shards: Tensor) -> Tensor:
        """The matrix (rows, columns) in `shards` (ranks, elements)."""
        if self.width is None:
            return shards.view(-1)[self.start : self.start + self.shape.numel()].view(self.shape)
        part = shards[:, self.start : self.start + self.width]
        return part.reshape(-1)[: self.shape.numel()].view(self.shape)

    def write(self, shards: Tensor, matrix: Tensor) -> None:
        """Store the matrix (rows, columns) in `shards` (ranks, elements)."""
        if self.width is None:
            self.read(shards).copy_(matrix)
            return
        padding = len(shards) * self.width - matrix.numel()
        padded = nn.functional.pad(matrix.flatten(), (0, padding))
        shards[:, self.start : self.start + self.width] = padded.view(-1, self.width)

    def local_range(self, rank: int, size: int) -> tuple[int, int, int]:
        """What the shard of `rank`, of `size` elements, holds: (first element of the flattened matrix, its offset in
        the shard, number of elements)."""
        elements = self.shape.numel()
        if self.width is not None:
            first = min(rank * self.width, elements)
            return first, self.start, min(self.width, elements - first)
        begin, end = max(self.start, rank * size), min(self.start + elements, (rank + 1) * size)
        return begin - self.start, begin - rank * size, max(0, end - begin)


@dataclass(frozen=True)
class ShardedMatrices:
    """The matrices that a flat shard is part of, the process group that shares them, and the device to compute on."""

    placements: list[Placement]
    group: distributed.ProcessGroup | None
    device: torch.device


def sharded_muon_updates(shard: Tensor, layout: ShardedMatrices, dtype: torch.dtype) -> Tensor:
    """This rank's part of muon_updates, for the matrices of which `shard` (elements,) is its part. Collective."""
    ranks, rank = distributed.get_world_size(layout.group), distributed.get_rank(layout.group)
    shards = torch.empty(ranks, shard.numel(), dtype=shard.dtype, device=layout.device)
    distributed.all_gather_into_tensor(shards.view(-1), shard.to(layout.device), group=layout.group)
    mine = layout.placements[rank::ranks]
    updates = muon_updates([placement.read(shards) for placement in mine], [p.pieces for p in mine], dtype)
    shards.zero_()
    for placement, update in zip(mine, updates, strict=True):
        placement.write(shards, update)
    # One rank contributes each element and the others contribute zeros, so the sum is exact.
    result = torch.empty_like(shards[rank])
    distributed.reduce_scatter_tensor(result, shards.view(-1), group=layout.group)
    return result.to(shard.device)
