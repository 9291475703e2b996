"""Muon (Jordan et al. 2024): momentum, orthogonalised by Newton-Schulz iterations, for the hidden matrices."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from mini_llm.engine.device import DTYPES, cpu_has_bf16
from mini_llm.model.attention import Attention

# Elements of a Muon group under ZeRO: what a rank gathers at a time, 256 MB in fp32.
GATHERED = 2**26

# Elements that Muon orthogonalises at a time, 64 MB in fp32, and some five times as much while it does.
STACKED = 2**24

# (down, across): a matrix as so many equal pieces, which are orthogonalised each for itself.
Pieces = tuple[int, int]

WHOLE: Pieces = (1, 1)


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
