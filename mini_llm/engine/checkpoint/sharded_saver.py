"""Sharded checkpoints, for models too large to gather on one machine: all ranks write their local shards in parallel.

A thread of each rank writes while training continues. The threads synchronise over a process group of their own: rank 0
creates the directory, every rank writes its file and reports its hash, rank 0 writes the manifest and then renames the
directory to its final name. If one rank cannot write, the save fails on all ranks.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

from mini_llm.engine.checkpoint.format import (
    DISK_ERRORS,
    SaveExtras,
    best_path,
    remove_old,
    step_path,
    write_manifest,
)
from mini_llm.engine.checkpoint.local_shards import copy_local_shards
from mini_llm.engine.checkpoint.saver import Saver
from mini_llm.engine.checkpoint.shard_files import SHARDS, LocalShard, write_shards
from mini_llm.engine.distributed.watchdog import BACKSTOP_SECONDS
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.run.files import atomic_directory
from mini_llm.engine.settings import LoopConfig
from mini_llm.engine.step import TrainContext


def make_saver(
    root: Path, context: TrainContext, save_extras: SaveExtras, config: LoopConfig, metadata: Mapping[str, Any]
) -> Saver:
    """The saver for config.checkpoint."""
    if config.checkpoint == "sharded":
        timeout = config.runtime.hang_seconds + 2 * BACKSTOP_SECONDS
        return ShardedSaver(root, context, save_extras, config.keep_last, metadata, timeout)
    return Saver(root, context, save_extras, config.keep_last, metadata)


class ShardedSaver(Saver):
    """Saver whose ranks each write their local shards; `timeout` is how many seconds they wait for each other."""

    def __init__(
        self,
        root: Path,
        context: TrainContext,
        save_extras: SaveExtras,
        keep_last: int,
        metadata: Mapping[str, Any],
        timeout: float = 900.0,
    ) -> None:
        super().__init__(root, context, save_extras, keep_last, metadata)
        self._peers = _Peers(context.accelerator, timeout)
        # (step, this rank's weights) of the best evaluation since the last save that succeeded.
        self._best_shards: tuple[int, dict[str, LocalShard]] | None = None

    def keep_best(self, step: int) -> None:
        """Keep a copy of this rank's weights in memory for the next save."""
        self._wait()
        self._best_shards = (step, self._copy(with_optimizer=False))

    def save(self, state: dict[str, Any]) -> None:
        """Copy this rank's shards and start writing them to checkpoints/step-<state["step"]>."""
        if self._saved == state["step"]:
            return
        self._wait()
        self._saved = state["step"]
        shards = self._copy()
        if self._best_shards is not None and self._best_shards[0] == state["step"]:
            self._best_shards = (state["step"], {key: shard for key, shard in shards.items() if "/" not in key})
        texts = {"state.json": json.dumps(state, indent=2) + "\n"}
        if (scaler := self.context.accelerator.scaler) is not None:
            texts["scaler.json"] = json.dumps(scaler.state_dict()) + "\n"
        self._written = self._writer.submit(self._write_shards, state["step"], shards, texts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._peers.close()

    def _copy(self, with_optimizer: bool = True) -> dict[str, LocalShard]:
        context, peers = self.context, self._peers
        return copy_local_shards(context.model, context.optimizer, peers.rank, peers.ranks, with_optimizer)

    def _write_shards(self, step: int, shards: dict[str, LocalShard], texts: dict[str, str]) -> None:
        fault_point("save-begin")
        if self._best_shards is not None:
            best, weights = self._best_shards
            self._publish(best_path(self.root, best), weights, {"step": best}, {})
            fault_point("save-best")
        self._publish(step_path(self.root, step), shards, {"step": step, **self.metadata}, texts)
        self._best_shards = None
        fault_point("save-published")
        if self._main:
            remove_old(self.root, self.keep_last)
        fault_point("save-end")

    def _publish(
        self, target: Path, shards: dict[str, LocalShard], metadata: Mapping[str, Any], texts: Mapping[str, str]
    ) -> None:
        """Write `target` together with the other ranks. Raises OSError on all ranks when one of them fails."""
        peers = self._peers
        directory, failure = None, None
        with ExitStack() as stack:
            if self._main:
                try:
                    directory = stack.enter_context(atomic_directory(target))
                    (directory / SHARDS).mkdir()
                except OSError as error:
                    failure = _reason(error)
            directory, failure = peers.from_main((directory, failure))
            entries: dict[str, Any] = {}
            if failure is None:
                try:
                    entry, failure = write_shards(directory, peers.rank, peers.ranks, shards), None
                    fault_point("save-shard")
                except DISK_ERRORS as error:
                    entry, failure = {}, f"rank {peers.rank}: {_reason(error)}"
                for other_entry, other_failure in peers.from_all((entry, failure)):
                    entries |= other_entry
                    failure = failure or other_failure
            if self._main and failure is None:
                try:
                    for name, text in texts.items():
                        (directory / name).write_text(text)
                    fault_point("save-state")
                    write_manifest(directory, metadata, entries)
                    fault_point("save-manifest")
                    stack.close()
                except OSError as error:
                    failure = _reason(error)
            failure = peers.from_main(failure)
            if failure is not None:
                # Leaving atomic_directory with an error removes the unfinished directory.
                raise OSError(failure)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


class _Peers:
    """Collectives among the writer threads of all ranks, in a process group apart from the training's."""

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self._group = None
        if self.ranks > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def from_main(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        if self._group is None:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group, device=torch.device("cpu"))
        return values[0]

    def from_all(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order."""
        if self._group is None:
            return [value]
        values = [None] * self.ranks
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def close(self) -> None:
        if self._group is not None:
            distributed.destroy_process_group(self._group)
            self._group = None
