"""A rank or the launcher dies or hangs: the whole job ends, nobody is left behind, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine.jsonl import read_rows
from tests.test_distributed import REPOSITORY, SETTINGS

STEPS = 240
# Time for two slow, niced processes to start; nothing is asserted about it.
LONG = 240
LAUNCHER = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
# 12 s: a watchdog must not take a machine that is slow for one that hangs.
OWN = [f"max_steps={STEPS}", "evaluate_every=1000", "save_every=40", "keep=last", "runtime.hang_timeout=12s"]


def start(folder: Path, run: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *LAUNCHER, "pretrain", "--data", "text.txt", f"run={run}", *SETTINGS, *OWN]
    # Files, not pipes: a rank that outlives the launcher would keep a pipe open.
    with (folder / f"{run}.out").open("w") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)


def ranks(launcher: subprocess.Popen) -> dict[int, psutil.Process]:
    """The processes of the job by rank."""
    found = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        rank = process.environ().get("RANK")
        if rank is not None and "pretrain" in process.cmdline():
            found[int(rank)] = process
    return found


def last_step(folder: Path) -> int:
    return max((row["step"] for row in read_rows(folder / "metrics.jsonl")), default=0)


def disturb(folder: Path, run: str, steps: int, act: Callable[[subprocess.Popen, dict], None]) -> tuple[int, str]:
    """Start the run, act `steps` steps after where it was, wait for everything to end; (exit code, output)."""
    launcher = start(folder, run)
    deadline = time.monotonic() + LONG
    begin = last_step(folder / "runs" / run) // 40 * 40
    while last_step(folder / "runs" / run) < begin + steps:
        assert launcher.poll() is None and time.monotonic() < deadline, (folder / f"{run}.out").read_text()
        time.sleep(0.01)
    job = ranks(launcher)
    assert sorted(job) == [0, 1]
    act(launcher, job)
    code = launcher.wait(timeout=LONG)
    _, alive = psutil.wait_procs(job.values(), timeout=LONG)
    assert not alive
    return code, (folder / f"{run}.out").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "text.txt").write_text("".join(f"word{i * i % 97} " for i in range(6000)))
    launcher = start(folder, "straight")
    assert launcher.wait(timeout=LONG) == 0, (folder / "straight.out").read_text()
    return folder


def test_whatever_happens_to_a_rank_costs_only_the_steps_since_the_last_save(folder):
    code, said = disturb(folder, "disturbed", 50, lambda _, job: job[1].kill())
    assert code != 0
    assert "another process of this job is gone or does not answer" in said
    assert last_step(folder / "runs" / "disturbed") < STEPS

    code, said = disturb(folder, "disturbed", 50, lambda _, job: job[1].suspend())
    assert code != 0
    assert "going on from step 40" in said
    assert "rank 0 (process" in said and "no progress for 12 s since step" in said
    assert "rank 1 (process" in said and "DOES NOT ANSWER" in said
    assert "most recent call first" in said and "in train_step" in said

    code, said = disturb(folder, "disturbed", 50, lambda launcher, _: os.kill(launcher.pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
    assert "going on from step 80" in said
    # Its ranks were asked to stop, and saved.
    assert "saved. The same command goes on" in said

    launcher = start(folder, "disturbed")
    assert launcher.wait(timeout=LONG) == 0, (folder / "disturbed.out").read_text()
    final = [(folder / "runs" / run / "model" / "model.safetensors").read_bytes() for run in ("straight", "disturbed")]
    assert final[0] == final[1]
    rows = [read_rows(folder / "runs" / run / "metrics.jsonl") for run in ("straight", "disturbed")]
    assert rows[0] == rows[1]
