"""Encoding in processes of its own, beside the one that reads: for a tokenizer that works on one core at a time.

with Encoders(tokenizer, 2) as encoders:
    pending = encoders.submit(texts)
    ids, counts = pending.result()
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from engine.machine import usable_cores

ROOT = Path(__file__).resolve().parents[1]
# One reading process keeps about two encoders busy.
MOST_PROCESSES = 3
# They start in about a third of a second, in which one process encodes 10 MB.
FEWEST_BYTES = 20_000_000

Encoded = tuple[np.ndarray, np.ndarray]


def encode_flat(tokenizer: Any, texts: Sequence[str]) -> Encoded:
    """Ids of the texts one after another (tokens,) int32, and how many each has (texts,) int64."""
    ids = tokenizer.encode_batch(texts)
    return np.concatenate([np.empty(0, np.int32), *ids]), np.array([len(one) for one in ids], np.int64)


class Encoders:
    """`count` processes that encode batches of texts side by side; none: batches are encoded as they are submitted.

    They end when this process does, however it ends. The batch of one that dies (for want of memory) is encoded here.
    """

    def __init__(self, tokenizer: Any, count: int) -> None:
        """`tokenizer`: anything that can be pickled and has encode_batch(list[str]) -> list of id arrays. `threads`,
        where it has that, is 1 in each process."""
        self.count = count
        self._tokenizer = tokenizer
        self._workers = [_start() for _ in range(count)]
        self._free: SimpleQueue[Connection] = SimpleQueue()
        self._threads = ThreadPoolExecutor(max(count, 1))
        for _, connection in self._workers:
            self._threads.submit(self._introduce, connection)

    def __enter__(self) -> "Encoders":
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process, connection in self._workers:
            connection.close()
            process.wait()

    def submit(self, texts: list[str]) -> "Future[Encoded]":
        """The ids of `texts`, as encode_flat gives them, in time."""
        if self.count:
            return self._threads.submit(self._ask, texts)
        done: Future[Encoded] = Future()
        done.set_result(encode_flat(self._tokenizer, texts))
        return done

    def _introduce(self, connection: Connection) -> None:
        """Hand over the tokenizer, which waits until the process has started."""
        with suppress(OSError):
            connection.send(self._tokenizer)
        self._free.put(connection)

    def _ask(self, texts: list[str]) -> Encoded:
        connection = self._free.get()
        try:
            connection.send(texts)
            answer = connection.recv()
        except (EOFError, OSError):
            answer = encode_flat(self._tokenizer, texts)
        finally:
            self._free.put(connection)
        if isinstance(answer, Exception):
            raise answer
        return answer


def encoders_for(tokenizer: Any, size: int | None) -> Encoders:
    """Processes for a corpus of `size` bytes (None: unknown, as of a data set of the Hub), where they pay."""
    cores = usable_cores()
    pays = getattr(tokenizer, "uses_one_core", False) and (size is None or size >= FEWEST_BYTES) and cores > 1
    return Encoders(tokenizer, min(cores, MOST_PROCESSES) if pays else 0)


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    """A new interpreter, since a fork of a process with threads (torch's, the progress bar's) may hang."""
    mine, theirs = Pipe()
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    process = subprocess.Popen(
        [sys.executable, "-m", "corpus.encoders", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": path},
        # Ctrl-C is for the process that they work for.
        start_new_session=True,
    )
    theirs.close()
    return process, mine


def _serve(connection: Connection) -> None:
    try:
        tokenizer = connection.recv()
        if hasattr(tokenizer, "threads"):
            tokenizer.threads = 1
        while True:
            texts = connection.recv()
            try:
                answer: Any = encode_flat(tokenizer, texts)
            except Exception as error:
                answer = error
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The process that this one worked for is gone.
        return


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
