"""End a job whose ranks die or hang, with the names of the ranks that do not answer.

A rank that dies closes its connections, so the next collective of the others fails at once. A rank that hangs or is
stopped leaves the others waiting: after `timeout` seconds without progress each of them prints who does not answer and
its own stacks, and exits, and the launcher ends the rest. If Python itself is stuck, faulthandler's C thread ends the
process a little later, and after that the timeout of the process group does. Those two alone could not name the rank.
"""

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator

from mini_llm.engine.errors import UserError

HEARTBEAT_SECONDS = 1.0
# A rank that sent no heartbeat for this long counts as dead.
SILENT_SECONDS = 5.0
# Outside of training one rank may work long while the others wait: it tokenizes a corpus or scores a model.
PATIENCE = timedelta(hours=6)
BACKSTOP_SECONDS = 15.0
# File descriptor: faulthandler writes to it even when Python's own stderr is replaced.
STDERR = 2
# Words in the error of a collective that lost a peer (gloo, NCCL or the store). gloo raises a plain RuntimeError.
LOST_PEER = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe", "socket", "recvvalue", "peer")


class PeerLostError(UserError):
    """Another process of the job is gone or does not answer."""

    exit_code = 1


class Watchdog:
    """Context manager that ends this process, with its stacks, after `timeout` seconds without a call of `beat`."""

    def __init__(self, timeout: float, accelerator: Accelerator) -> None:
        self.timeout, self.rank = timeout, accelerator.process_index
        self._place, self._beaten, self._stop = "the start", time.monotonic(), threading.Event()
        # Last heartbeat of each other rank, and when it came.
        self._heard = {rank: ("", -float("inf")) for rank in range(accelerator.num_processes) if rank != self.rank}

    def beat(self, place: str) -> None:
        """Report progress: the run has reached `place`."""
        self._place, self._beaten = place, time.monotonic()
        faulthandler.dump_traceback_later(self.timeout + BACKSTOP_SECONDS, exit=True, file=STDERR)

    def __enter__(self) -> "Watchdog":
        self.beat(self._place)
        # Two threads, because a request to the store can block for minutes when its host is gone.
        for target in (self._watch, self._exchange) if self._heard else (self._watch,):
            threading.Thread(target=target, name=f"watchdog{target.__name__}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()

    def _waits(self) -> bool:
        return not self._stop.wait(min(HEARTBEAT_SECONDS, self.timeout / 4))

    def _watch(self) -> None:
        while self._waits():
            if time.monotonic() - self._beaten > self.timeout:
                self._exit()

    def _exchange(self) -> None:
        """Send this rank's heartbeat through the store and note when each other rank's last one came."""
        # A connection of its own, because the main thread may be waiting on the other one.
        c10d: Any = torch.distributed.distributed_c10d
        store = c10d._get_default_store().clone()
        about = f"(process {os.getpid()} on {socket.gethostname()})"
        beating = True  # the first heartbeat at once, so that a rank that stops early is known by its process
        while beating:
            try:
                store.set(f"heartbeat/{self.rank}", f"{time.monotonic():.3f} {about} after {self._place}")
                for rank, (before, _) in self._heard.items():
                    key = f"heartbeat/{rank}"
                    beat = store.get(key).decode() if store.check([key]) else ""
                    if beat != before:
                        self._heard[rank] = beat, time.monotonic()
            except RuntimeError:
                # The store's host is gone, and with it whatever the main thread waits for.
                return
            beating = self._waits()

    def _exit(self) -> None:
        lines = [f"rank {self.rank} (process {os.getpid()}): no progress for {self.timeout:g} s since {self._place}"]
        for rank, (beat, heard) in self._heard.items():
            dead = time.monotonic() - heard > SILENT_SECONDS
            about = beat.partition(" ")[2] or "(never heard of)"
            lines.append(f"  rank {rank} {about} {'DOES NOT ANSWER: stopped or gone' if dead else 'answers'}")
        lines.append("The last checkpoint is intact: run the same command again to resume. Stacks of this rank:")
        print("\n".join(lines), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        os._exit(1)


def set_collective_timeout(timeout: timedelta) -> None:
    """Set how long a collective waits for its peers, in every process group."""
    if torch.distributed.is_initialized():
        for group in torch.distributed.distributed_c10d._world.pg_map:
            torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)


@contextmanager
def peers_may_die(timeout: float, accelerator: Accelerator) -> Iterator[None]:
    """Inside this block a collective fails after `timeout` seconds plus the watchdog's own time, not after PATIENCE.

    Raises PeerLostError in place of the errors of collectives. Nothing is saved then, since saving needs all ranks.
    """
    set_collective_timeout(timedelta(seconds=timeout + 2 * BACKSTOP_SECONDS))
    try:
        yield
        set_collective_timeout(PATIENCE)
    except RuntimeError as error:
        text = str(error).lower()
        if accelerator.num_processes == 1 or not any(word in text for word in LOST_PEER):
            raise
        cause = str(error).strip().splitlines()[0][:300]
        raise PeerLostError(
            f"rank {accelerator.process_index}: another process of this job is gone or does not answer ({cause}). "
            "The last checkpoint is intact: run the same command again to resume"
        ) from error


def die_with_launcher() -> None:
    """Have Linux send SIGTERM to this process when its launcher dies; the training loop then saves and exits."""
    launched = {"TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"} & set(os.environ)
    if not launched or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    parent = os.getppid()
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    # The launcher may have died before the call.
    if os.getppid() != parent or parent == 1:
        os.kill(os.getpid(), signal.SIGTERM)
