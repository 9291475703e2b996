"""Checkpoints written in the background: the state is copied, then one thread writes it while training continues.

The next save, the end of training, a signal and an error wait for that thread. A save that fails is reported and leaves
the previous checkpoint in place; the last save of a launch must succeed.
"""

import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from mini_llm.engine.checkpoint.format import (
    DISK_ERRORS,
    SaveExtras,
    Snapshot,
    remove_old,
    write_best,
    write_checkpoint,
)
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.zero import gather_state, gather_weights, unwrap
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.step import TrainContext
from mini_llm.model import Model


class Saver:
    """Context manager that saves the state of `context` below `root`. Every rank calls every method; rank 0 writes.

    save_extras(directory) writes the tokenizer and other files into a model directory. `metadata` goes into each
    manifest.
    """

    def __init__(
        self, root: Path, context: TrainContext, save_extras: SaveExtras, keep_last: int, metadata: Mapping[str, Any]
    ) -> None:
        self.root = root
        self.context = context
        self.keep_last = keep_last
        self.metadata = dict(metadata)
        self._main = context.accelerator.is_main_process
        self._make_extras = save_extras
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        self._saved: int | None = None
        # (step, weights) of the best evaluation since the last save that succeeded.
        self._best: tuple[int, dict[str, Tensor]] | None = None
        self._failure: str | None = None

    def keep_best(self, step: int) -> None:
        """Keep a copy of the current weights in memory, to be written by the next save.

        A run killed before that save repeats the evaluation when it resumes.
        """
        weights = gather_weights(self.context.model, keep=self._main)
        if self._main:
            self._wait()
            self._best = (step, weights)

    def save(self, state: dict[str, Any]) -> None:
        """Copy the state and start writing checkpoints/step-<state["step"]>, once the previous save is written."""
        if self._saved == state["step"]:
            return
        accelerator = self.context.accelerator
        # Wait first, so that memory never holds two copies.
        self._wait()
        self._saved = state["step"]
        weights, optimizer_state = gather_state(self.context.model, self.context.optimizer, keep=self._main)
        if not self._main:
            return
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        if self._best is not None and self._best[0] == state["step"]:
            self._best = (state["step"], weights)
        snapshot = Snapshot(weights, optimizer_state, state, scaler, self.metadata)
        _ = self._extras  # Read it here, in the main thread.
        self._written = self._writer.submit(self._write, unwrap(self.context.model), snapshot)

    def finish(self) -> None:
        """Wait until the last save is on disk. Raises CheckpointError on every rank when it failed."""
        self._wait(last=True)
        failure = broadcast(self._failure, self.context.accelerator)
        if failure is not None:
            raise CheckpointError(failure)

    def save_extras(self, directory: Path) -> None:
        """Write the files of save_extras into a model directory, from memory."""
        for name, content in self._extras.items():
            (directory / name).write_bytes(content)
            fault_point("save-file")

    def __enter__(self) -> "Saver":
        if self._main:
            # A run that was killed after its last save may have left checkpoints that this save made obsolete.
            with suppress(OSError):
                remove_old(self.root, self.keep_last)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()
        self._writer.shutdown()

    @cached_property
    def _extras(self) -> dict[str, bytes]:
        """The files of save_extras by name. Must be read first in the main thread: save_extras may import modules."""
        with tempfile.TemporaryDirectory() as name:
            self._make_extras(Path(name))
            return {path.name: path.read_bytes() for path in Path(name).iterdir()}

    def _write(self, model: Model, snapshot: Snapshot) -> None:
        fault_point("save-begin")
        if self._best is not None:
            write_best(self.root, model, *self._best, self.save_extras)
            fault_point("save-best")
        write_checkpoint(self.root, model, snapshot, self.save_extras)
        self._best = None
        fault_point("save-published")
        remove_old(self.root, self.keep_last)
        fault_point("save-end")

    def _wait(self, last: bool = False) -> None:
        """Wait for the writer thread. Reports a failed save, except the `last` one, which finish() raises."""
        written, self._written = self._written, None
        if written is None:
            return
        self._failure = None
        try:
            written.result()
        except DISK_ERRORS as error:
            reason = getattr(error, "strerror", None) or error
            self._failure = (
                f"{self.root / 'checkpoints'}: step {self._saved} could not be saved ({reason}). Earlier checkpoints "
                "are intact; make room there or make the directory writable"
            )
            self._saved = None
            if self._main and not last:
                print(f"{self._failure}. Training continues", file=sys.stderr, flush=True)
