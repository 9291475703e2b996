"""Checkpoints for models that no machine could gather: every rank writes what it holds, at the same time.

A thread of each rank writes while the training goes on. The threads agree over a process group of their own: the main
rank makes the directory, all write their file and say its hash, the main rank writes the manifest and then gives the
directory its name. What one rank cannot write is a save that failed on all.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import distributed

from mini_llm.engine.checkpoint.format import DISK_ERRORS, Decorate, best_path, remove_old, step_path, write_manifest
from mini_llm.engine.checkpoint.local_shards import copy_fragments
from mini_llm.engine.checkpoint.saver import Saver
from mini_llm.engine.checkpoint.shard_files import SHARDS, Fragment, write_shard
from mini_llm.engine.distributed.watchdog import BACKSTOP_SECONDS
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.run.files import atomic_directory
from mini_llm.engine.step import Training

if TYPE_CHECKING:
    from mini_llm.engine.settings import LoopConfig


def make_saver(
    root: Path, training: Training, decorate: Decorate, config: "LoopConfig", facts: Mapping[str, Any]
) -> Saver:
    """The saver that config.checkpoint names."""
    if config.checkpoint == "sharded":
        timeout = config.runtime.hang_seconds + 2 * BACKSTOP_SECONDS
        return ShardedSaver(root, training, decorate, config.keep_last, facts, timeout)
    return Saver(root, training, decorate, config.keep_last, facts)


class ShardedSaver(Saver):
    """Saver whose ranks write what they hold. `timeout`: seconds that they wait for one another."""

    def __init__(
        self,
        root: Path,
        training: Training,
        decorate: Decorate,
        keep_last: int,
        facts: Mapping[str, Any],
        timeout: float = 900.0,
    ) -> None:
        super().__init__(root, training, decorate, keep_last, facts)
        self._peers = _Peers(training.accelerator, timeout)
        # (step, weights this rank holds) of the best evaluation since the last save that succeeded.
        self._best_part: tuple[int, dict[str, Fragment]] | None = None

    def keep_best(self, step: int) -> None:
        """Keep the part of the weights that this rank holds, in memory, for the next save."""
        self._wait()
        self._best_part = (step, self._copy(moments=False))

    def save(self, state: dict[str, Any]) -> None:
        """Copy what this rank holds and have it written into checkpoints/step-<state["step"]>."""
        if self._saved == state["step"]:
            return
        self._wait()
        self._saved = state["step"]
        parts = self._copy()
        if self._best_part is not None and self._best_part[0] == state["step"]:
            self._best_part = (state["step"], {key: part for key, part in parts.items() if "/" not in key})
        texts = {"state.json": json.dumps(state, indent=2) + "\n"}
        if (scaler := self.training.accelerator.scaler) is not None:
            texts["scaler.json"] = json.dumps(scaler.state_dict()) + "\n"
        self._written = self._writer.submit(self._write_parts, state["step"], parts, texts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._peers.close()

    def _copy(self, moments: bool = True) -> dict[str, Fragment]:
        training, peers = self.training, self._peers
        return copy_fragments(training.model, training.optimizer, peers.rank, peers.ranks, moments)

    def _write_parts(self, step: int, parts: dict[str, Fragment], texts: dict[str, str]) -> None:
        fault_point("save-begin")
        if self._best_part is not None:
            best, weights = self._best_part
            self._publish(best_path(self.root, best), weights, {"step": best}, {})
            fault_point("save-best")
        self._publish(step_path(self.root, step), parts, {"step": step, **self.facts}, texts)
        self._best_part = None
        fault_point("save-published")
        if self._main:
            remove_old(self.root, self.keep_last)
        fault_point("save-end")

    def _publish(
        self, target: Path, parts: dict[str, Fragment], facts: Mapping[str, Any], texts: Mapping[str, str]
    ) -> None:
        """Write `target`, together with the other ranks. Raises OSError on all of them when one of them failed."""
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
            entries = {}
            if failure is None:
                try:
                    entry, failure = write_shard(directory, peers.rank, peers.ranks, parts), None
                    fault_point("save-shard")
                except DISK_ERRORS as error:
                    entry, failure = {}, f"rank {peers.rank}: {_reason(error)}"
                for other, why in peers.from_all((entry, failure)):
                    entries |= other
                    failure = failure or why
            if self._main and failure is None:
                try:
                    for name, text in texts.items():
                        (directory / name).write_text(text)
                    fault_point("save-state")
                    write_manifest(directory, facts, entries)
                    fault_point("save-manifest")
                    stack.close()
                except OSError as error:
                    failure = _reason(error)
            failure = peers.from_main(failure)
            if failure is not None:
                # The directory goes with it.
                raise OSError(failure)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


class _Peers:
    """The writer threads of all ranks: collectives of their own, beside those of the training."""

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self._group = None
        if self.ranks > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def from_main(self, value: Any) -> Any:
        """The main rank's value."""
        if self._group is None:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group, device=torch.device("cpu"))
        return values[0]

    def from_all(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        if self._group is None:
            return [value]
        values = [None] * self.ranks
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def close(self) -> None:
        if self._group is not None:
            distributed.destroy_process_group(self._group)
            self._group = None
