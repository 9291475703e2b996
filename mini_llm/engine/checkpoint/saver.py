"""Checkpoints written while the training goes on: the state is copied, then one thread writes it.

The next save, the end, a signal and an error wait for that thread. A save that fails is said and leaves the checkpoint
before it in place; the last one of a launch must succeed.
"""

import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from mini_llm.engine.checkpoint.format import DISK_ERRORS, Decorate, Snapshot, remove_old, write_best, write_checkpoint
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.zero import gather_state, gather_weights, unwrap
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.step import Training


class Saver:
    """Save the state of `training` below `root`; a context manager. All ranks call every method, the main one writes.

    `facts` goes into each manifest. `decorate(directory)` adds the tokenizer's files to a model directory.
    """

    def __init__(
        self, root: Path, training: Training, decorate: Decorate, keep_last: int, facts: Mapping[str, Any]
    ) -> None:
        self.root = root
        self.training = training
        self.keep_last = keep_last
        self.facts = dict(facts)
        self._main = training.accelerator.is_main_process
        self._decorate = _Once(decorate)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        self._saved: int | None = None
        # (step, weights) of the best evaluation since the last save that succeeded.
        self._best: tuple[int, dict[str, Tensor]] | None = None
        self._failure: str | None = None

    def keep_best(self, step: int) -> None:
        """Keep the weights as they are for the next save, in memory: a killed run evaluates them again."""
        weights = gather_weights(self.training.model, keep=self._main)
        if self._main:
            self._wait()
            self._best = (step, weights)

    def save(self, state: dict[str, Any]) -> None:
        """Copy everything and have it written as checkpoints/step-<state["step"]>, after the save before it."""
        if self._saved == state["step"]:
            return
        accelerator = self.training.accelerator
        # One copy in memory at a time.
        self._wait()
        self._saved = state["step"]
        weights, moments = gather_state(self.training.model, self.training.optimizer, keep=self._main)
        if not self._main:
            return
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        if self._best is not None and self._best[0] == state["step"]:
            self._best = (state["step"], weights)
        snapshot = Snapshot(weights, moments, state, scaler, self.facts)
        self._decorate.prepare()
        self._written = self._writer.submit(self._write, unwrap(self.training.model), snapshot)

    def finish(self) -> None:
        """Wait until the last save is on disk. Raises CheckpointError on every rank when it is not."""
        self._wait(last=True)
        failure = broadcast(self._failure, self.training.accelerator)
        if failure is not None:
            raise CheckpointError(failure)

    def __enter__(self) -> "Saver":
        if self._main:
            # A run killed after its last save has still to remove what that made superfluous.
            with suppress(OSError):
                remove_old(self.root, self.keep_last)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()
        self._writer.shutdown()

    @property
    def decorate(self) -> Decorate:
        """The tokenizer's files, as they are added to every directory."""
        self._decorate.prepare()
        return self._decorate

    def _write(self, model: nn.Module, snapshot: Snapshot) -> None:
        fault_point("save-begin")
        if self._best is not None:
            write_best(self.root, model, *self._best, self._decorate)
            fault_point("save-best")
        write_checkpoint(self.root, model, snapshot, self._decorate)
        self._best = None
        fault_point("save-published")
        remove_old(self.root, self.keep_last)
        fault_point("save-end")

    def _wait(self, last: bool = False) -> None:
        """Wait for the writer; say what went wrong, unless it is the `last` save, for finish to raise."""
        written, self._written = self._written, None
        if written is None:
            return
        self._failure = None
        try:
            written.result()
        except DISK_ERRORS as error:
            reason = getattr(error, "strerror", None) or error
            self._failure = (
                f"{self.root / 'checkpoints'}: step {self._saved} could not be saved ({reason}). What was saved before "
                "it is intact; make room there or make it writable"
            )
            self._saved = None
            if self._main and not last:
                print(f"{self._failure}. The training goes on", file=sys.stderr, flush=True)


class _Once:
    """`decorate` called once, in the training's own thread, where it may import; then its files are written again."""

    def __init__(self, decorate: Decorate) -> None:
        self._make = decorate
        self._files: dict[str, bytes] | None = None

    def prepare(self) -> None:
        if self._files is None:
            with tempfile.TemporaryDirectory() as name:
                self._make(Path(name))
                self._files = {path.name: path.read_bytes() for path in Path(name).iterdir()}

    def __call__(self, directory: Path) -> None:
        assert self._files is not None
        for name, content in self._files.items():
            (directory / name).write_bytes(content)
            fault_point("save-file")
