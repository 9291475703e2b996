"""The files of a sharded checkpoint: one per rank, with the ranges of flattened tensors that this rank holds.

shards/rank-00000-of-00008.safetensors: fp32 vectors by "<parameter>" and "<parameter>/<state>". For each vector, the
metadata in the file's header gives its start in the flattened tensor and the shape of the whole tensor.

A reader asks for ranges and does not depend on which rank wrote them, so the number of ranks and the ZeRO stage may
differ from those of the writer.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import sha256
from mini_llm.model.huggingface.weights import save_tensors

SHARDS = "shards"


@dataclass(frozen=True)
class LocalShard:
    """A range of a flattened tensor of `shape`: `values` (elements,), starting at element `start`.

    `replicated`: every rank holds the whole tensor.
    """

    start: int
    shape: torch.Size
    values: Tensor
    replicated: bool = False


def write_shards(directory: Path, rank: int, ranks: int, shards: Mapping[str, LocalShard]) -> dict[str, Any]:
    """Write this rank's file; returns its manifest entry by file name. Raises OSError or SafetensorError."""
    path = directory / SHARDS / f"rank-{rank:05d}-of-{ranks:05d}.safetensors"
    placements = {key: json.dumps([shard.start, *shard.shape]) for key, shard in shards.items()}
    save_tensors({key: shard.values for key, shard in shards.items()}, path, placements)
    with open(path, "rb+") as file:
        # Only the machine that wrote the file can flush it.
        os.fsync(file.fileno())
    name = path.relative_to(directory).as_posix()
    return {name: {"size": path.stat().st_size, "sha256": sha256(path)}}


class ShardReader:
    """Context manager that reads any range of any tensor of a sharded checkpoint.

    Files are memory-mapped, so only the requested ranges are read. `shapes` are those of the whole tensors, by
    "<parameter>" and "<parameter>/<state>". Raises CheckpointError when a file is unreadable or when the files
    together do not cover a tensor.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.directory = checkpoint / SHARDS
        self.shapes: dict[str, torch.Size] = {}
        # (begin, end, file) of each range.
        self._ranges: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self._files = ExitStack()

    def __enter__(self) -> "ShardReader":
        with ExitStack() as self._files:
            for path in sorted(self.directory.glob("*.safetensors")):
                try:
                    self._add(self._files.enter_context(safe_open(str(path), framework="pt")))
                except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
                    raise CheckpointError(f"{path}: unreadable ({error})") from None
            self._check_coverage()
            self._files = self._files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def read(self, key: str, start: int, count: int) -> Tensor:
        """Elements start to start + count of the flattened tensor `key`: a new fp32 tensor (count,) on the CPU."""
        result = torch.empty(count)
        for begin, end, file in self._ranges[key]:
            low, high = max(begin, start), min(end, start + count)
            if low < high:
                result[low - start : high - start] = file.get_slice(key)[low - begin : high - begin]
        return result

    def read_tensor(self, key: str) -> Tensor:
        """The whole tensor `key` in its own shape."""
        return self.read(key, 0, self.shapes[key].numel()).view(self.shapes[key])

    def _add(self, file: Any) -> None:
        """Index one open file. Raises ValueError, TypeError or KeyError when its header is invalid."""
        placements = file.metadata() or {}
        for key in file.keys():  # noqa: SIM118
            start, *sizes = json.loads(placements[key])
            shape = torch.Size(sizes)
            (count,) = file.get_slice(key).get_shape()
            if self.shapes.setdefault(key, shape) != shape or not 0 <= start <= start + count <= shape.numel():
                raise ValueError(f"the placement of {key} does not match its shape or the other files")
            if file.get_slice(key).get_dtype() != "F32":
                raise ValueError(f"{key} is not fp32")
            self._ranges[key].append((start, start + count, file))

    def _check_coverage(self) -> None:
        for key, ranges in self._ranges.items():
            covered = 0
            for begin, end, _ in sorted(ranges, key=lambda item: item[:2]):
                if begin > covered:
                    break
                covered = max(covered, end)
            if covered < self.shapes[key].numel():
                raise CheckpointError(f"{self.directory}: no file holds element {covered} of {key}")
