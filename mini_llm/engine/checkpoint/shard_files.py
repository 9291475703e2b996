"""The files of a sharded checkpoint: one a rank, with the ranges of the flattened tensors that this rank holds.

shards/rank-00000-of-00008.safetensors: rows of fp32 numbers by "<parameter>" and "<parameter>/<state>". The metadata of
its header says of each where in the whole tensor it begins, and that tensor's shape.

Which rank wrote what is of no concern to a reader: it asks for ranges, whatever its own number of ranks and ZeRO stage.
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
from safetensors.torch import save_file
from torch import Tensor

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import sha256

SHARDS = "shards"


@dataclass(frozen=True)
class Fragment:
    """`values` (elements,) are those of a flattened tensor of `shape` from `start` on.

    `everywhere`: it is the whole tensor, and every rank has it.
    """

    start: int
    shape: torch.Size
    values: Tensor
    everywhere: bool = False


def write_shard(directory: Path, rank: int, ranks: int, fragments: Mapping[str, Fragment]) -> dict[str, Any]:
    """Write what a rank holds; returns its entry of the manifest, by name. Raises OSError or SafetensorError."""
    path = directory / SHARDS / f"rank-{rank:05d}-of-{ranks:05d}.safetensors"
    placed = {key: json.dumps([part.start, *part.shape]) for key, part in fragments.items()}
    save_file({key: part.values for key, part in fragments.items()}, str(path), metadata=placed)
    with open(path, "rb+") as file:
        # Only the machine that wrote it can flush it.
        os.fsync(file.fileno())
    name = path.relative_to(directory).as_posix()
    return {name: {"size": path.stat().st_size, "sha256": sha256(path)}}


class Shards:
    """Any range of any tensor of a sharded checkpoint; a context manager. Files are mapped: only what is asked is read.

    `shapes`: of the whole tensors, by "<parameter>" and "<parameter>/<state>". Raises CheckpointError when a file
    cannot be read or the files together leave out a part.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.directory = checkpoint / SHARDS
        self.shapes: dict[str, torch.Size] = {}
        # (begin, end, file) of each range.
        self._ranges: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self._files = ExitStack()

    def __enter__(self) -> "Shards":
        with ExitStack() as self._files:
            for path in sorted(self.directory.glob("*.safetensors")):
                try:
                    self._add(self._files.enter_context(safe_open(str(path), framework="pt")))
                except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
                    raise CheckpointError(f"{path}: unreadable ({error})") from None
            self._check()
            self._files = self._files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def read(self, key: str, start: int, count: int) -> Tensor:
        """`count` numbers of the flattened tensor `key` from `start` on, in fp32 on the CPU, in new memory."""
        result = torch.empty(count)
        for begin, end, file in self._ranges[key]:
            low, high = max(begin, start), min(end, start + count)
            if low < high:
                result[low - start : high - start] = file.get_slice(key)[low - begin : high - begin]
        return result

    def whole(self, key: str) -> Tensor:
        return self.read(key, 0, self.shapes[key].numel()).view(self.shapes[key])

    def _add(self, file: Any) -> None:
        placed = file.metadata() or {}
        for key in file.keys():  # noqa: SIM118
            start, *shape = json.loads(placed[key])
            shape = torch.Size(shape)
            (count,) = file.get_slice(key).get_shape()
            if self.shapes.setdefault(key, shape) != shape or not 0 <= start <= start + count <= shape.numel():
                raise ValueError(f"{key} is out of place")
            if file.get_slice(key).get_dtype() != "F32":
                raise ValueError(f"{key} is not fp32")
            self._ranges[key].append((start, start + count, file))

    def _check(self) -> None:
        for key, ranges in self._ranges.items():
            covered = 0
            for begin, end, _ in sorted(ranges, key=lambda item: item[:2]):
                if begin > covered:
                    break
                covered = max(covered, end)
            if covered < self.shapes[key].numel():
                raise CheckpointError(f"{self.directory}: no file holds element {covered} of {key}")
