"""No silent hang, no orphans: a rank that gets nowhere ends with its stack, one whose launcher died ends politely.

Three guards, from fast to slow. A rank that dies closes its connections: the others' next collective fails at once. A
rank that hangs or is stopped leaves them waiting: after `timeout` seconds without progress each prints who does not
answer and its own stack, and ends, and the launcher ends the rest. Should Python itself be stuck, faulthandler's own
thread does that a little later, and the process group's timeout after it.
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
# Of a rank whose heart beats every second.
SILENT_SECONDS = 5.0
# Outside of training one rank may work for long while the others wait: it tokenises a corpus, or scores a model.
PATIENCE = timedelta(hours=6)
BACKSTOP_SECONDS = 15.0
# In the message of a collective that failed for want of a peer (gloo, NCCL, the store).
LOST_PEER = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe", "socket", "recvvalue", "peer")


class PeerLostError(UserError):
    """Another process of the job is gone or does not answer."""

    exit_code = 1


class Watchdog:
    """Context: ends this process with a dump of its stacks when `beat` is not called for `timeout` seconds."""

    def __init__(self, timeout: float, accelerator: Accelerator) -> None:
        self.timeout, self.rank, self.ranks = timeout, accelerator.process_index, accelerator.num_processes
        self._place, self._beaten, self._stop = "the start", time.monotonic(), threading.Event()
        self._store: Any = None
        if self.ranks > 1:
            # A connection of its own: the main thread may wait in the other.
            self._store = torch.distributed.distributed_c10d._get_default_store().clone()
        # The others by rank: what each said last, and when.
        self._heard: dict[int, tuple[str, float]] = {}
        # Each with a thread of its own: when the store's host is gone, to ask it may block for minutes.
        self._threads = [
            threading.Thread(target=target, name=f"watchdog-{target.__name__}", daemon=True)
            for target in (self._watch, self._exchange)
        ]

    def beat(self, place: str) -> None:
        """There is progress: `place` has been reached."""
        self._place, self._beaten = place, time.monotonic()
        faulthandler.dump_traceback_later(self.timeout + BACKSTOP_SECONDS, exit=True, file=sys.__stderr__)

    def __enter__(self) -> "Watchdog":
        self.beat(self._place)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stop.wait(min(HEARTBEAT_SECONDS, self.timeout / 4)):
            if time.monotonic() - self._beaten > self.timeout:
                self._end()

    def _exchange(self) -> None:
        """Tell the others that this process runs, and note when each was last heard of."""
        while self._store is not None and not self._stop.wait(min(HEARTBEAT_SECONDS, self.timeout / 4)):
            beat = f"{time.monotonic():.3f} {os.getpid()} {socket.gethostname()} {self._place}"
            try:
                self._store.set(f"heartbeat/{self.rank}", beat)
                for rank in range(self.ranks):
                    if rank != self.rank and self._store.check([f"heartbeat/{rank}"]):
                        text = self._store.get(f"heartbeat/{rank}").decode()
                        if rank not in self._heard or self._heard[rank][0] != text:
                            self._heard[rank] = (text, time.monotonic())
            except RuntimeError:
                # The store's host is gone; what the main thread waits for will not come either.
                return

    def _end(self) -> None:
        lines = [f"rank {self.rank} (process {os.getpid()}): no progress for {self.timeout:g} s since {self._place}"]
        last = self._heard
        for rank in range(self.ranks):
            if rank == self.rank:
                continue
            _, process, host, place = last[rank][0].split(" ", 3) if rank in last else ("", "?", "?", "the start")
            silent = rank not in last or time.monotonic() - last[rank][1] > SILENT_SECONDS
            state = "DOES NOT ANSWER: stopped or gone" if silent else "answers"
            lines.append(f"  rank {rank} (process {process} on {host}) {state}; it had reached {place}")
        lines.append("The last checkpoint is intact: the same command goes on from there. Stacks of this rank:")
        print("\n".join(lines), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        os._exit(1)


def wait_at_most(wait: timedelta) -> None:
    """How long a collective waits for its peers, in every process group."""
    if torch.distributed.is_initialized():
        for group in torch.distributed.distributed_c10d._world.pg_map:
            torch.distributed.distributed_c10d._set_pg_timeout(wait, group)


@contextmanager
def peers_may_die(timeout: float, accelerator: Accelerator) -> Iterator[None]:
    """Inside, peers that let others wait longer than `timeout` seconds (and the watchdog's own time) are given up.

    What a collective raises for want of a peer becomes one message. Nothing is saved then: that needs all ranks.
    """
    wait_at_most(timedelta(seconds=timeout + 2 * BACKSTOP_SECONDS))
    try:
        yield
        wait_at_most(PATIENCE)
    except RuntimeError as error:
        text = str(error).lower()
        if accelerator.num_processes == 1 or not any(word in text for word in LOST_PEER):
            raise
        cause = str(error).strip().splitlines()[0][:300]
        raise PeerLostError(
            f"rank {accelerator.process_index}: another process of this job is gone or does not answer ({cause}). "
            "The last checkpoint is intact: the same command goes on from there"
        ) from error


def die_with_launcher() -> None:
    """Have Linux send SIGTERM when the launcher dies, so that no rank is left behind: it saves, if it can, and ends."""
    launched = {"TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"} & set(os.environ)
    if not launched or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    parent = os.getppid()
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    # It may have died before the call.
    if os.getppid() != parent or parent == 1:
        os.kill(os.getpid(), signal.SIGTERM)
