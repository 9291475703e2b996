"""Faults 28 to 30 in a job of two ranks: a rank dies or hangs, the launcher dies, a network link is cut."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from chaos.registry import Differs, NotHere, Seen, check, fault
from mini_llm.engine.run.jsonl import read_rows

if TYPE_CHECKING:
    from chaos.lab import Lab

ROOT = Path(__file__).parent.parent
STEPS, SAVE_EVERY, DISTURBED_AFTER = 240, 40, 50
# Long enough that a slow machine does not count as hanging.
HANG_SECONDS = 20
# A frame in the stack of a waiting rank, whether it waits in a collective of a step or between two steps.
LOOP_FRAME = 'mini_llm/engine/loop.py", line'
# Seconds that two slow processes may take to start or to end.
LONG = 240
LAUNCHER = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
SETTINGS = [
    *("global_batch_size=8", "micro_batch_size=2", "vocab_size=320", "optim.name=adamw"),
    *("budget=null", "load_best=false"),
    *("sizes.hidden_size=32", "sizes.num_hidden_layers=2", "sizes.num_attention_heads=2"),
    *("sizes.max_position_embeddings=32", "runtime.precision=fp32", "runtime.device=cpu", "tracking.wandb=disabled"),
    *(f"max_steps={STEPS}", f"save_every={SAVE_EVERY}", "evaluate_every=1000", f"runtime.hang_timeout={HANG_SECONDS}s"),
]
Act = Callable[[subprocess.Popen, dict[int, psutil.Process]], None]


def kill_rank(_: subprocess.Popen, job: dict[int, psutil.Process]) -> None:
    job[1].kill()


def stop_rank(_: subprocess.Popen, job: dict[int, psutil.Process]) -> None:
    job[1].suspend()


def kill_launcher(launcher: subprocess.Popen, _: dict[int, psutil.Process]) -> None:
    os.kill(launcher.pid, signal.SIGKILL)


def write_text(folder: Path) -> None:
    (folder / "text.txt").write_text("".join(f"word{i * i % 97} " for i in range(6000)))


def start(folder: Path, run: str, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *LAUNCHER, "pretrain", "--data", "text.txt", f"run={run}", *SETTINGS, *more]
    # Write to files: a rank that outlives the launcher would keep a pipe open.
    with (folder / f"{run}.out").open("w") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)


def complete(folder: Path, run: str) -> str:
    """Run until it finishes; returns the output. Raises Differs if the run fails."""
    code = start(folder, run).wait(timeout=LONG)
    said = (folder / f"{run}.out").read_text()
    check(code == 0, f"{run} ended with {code}: {said[-1500:]}")
    return said


def disturb(folder: Path, run: str, act: Act) -> tuple[int, str]:
    """Start the run and call `act` DISTURBED_AFTER steps after the checkpoint it resumes from.

    Returns (exit code of the launcher, output). Raises Differs if the run ends before that or leaves a process behind.
    """
    begin = last_step(folder, run) // SAVE_EVERY * SAVE_EVERY
    launcher = start(folder, run)
    deadline = time.monotonic() + LONG
    while last_step(folder, run) < begin + DISTURBED_AFTER:
        running = launcher.poll() is None and time.monotonic() < deadline
        check(running, f"{run} did not reach that step: {(folder / f'{run}.out').read_text()[-1500:]}")
        time.sleep(0.01)
    job = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        rank = process.environ().get("RANK")
        if rank is not None and "pretrain" in process.cmdline():
            job[int(rank)] = process
    check(sorted(job) == [0, 1], f"ranks {sorted(job)} are running")
    act(launcher, job)
    code = launcher.wait(timeout=LONG)
    _, alive = psutil.wait_procs(job.values(), timeout=LONG)
    check(not alive, f"processes left behind: {alive}")
    return code, (folder / f"{run}.out").read_text()


def last_step(folder: Path, run: str) -> int:
    return max((row["step"] for row in read_rows(folder / "runs" / run / "metrics.jsonl")), default=0)


def difference(folder: Path, one: str, other: str) -> str | None:
    """The first file that is not bit-identical in two finished runs, None if there is none."""
    runs = [folder / "runs" / name for name in (one, other)]
    for name in ("model/model.safetensors", "metrics.jsonl"):
        if len({(run / name).read_bytes() for run in runs}) > 1:
            return name
    return None


def recovered(lab: "Lab", name: str, act: Act, words: list[str], code: int | None = None) -> Seen:
    """Disturb a run, check its output, resume it, and compare the result with an undisturbed run."""
    folder = lab.folder(name)
    write_text(folder)
    complete(folder, "straight")
    ended, said = disturb(folder, "disturbed", act)
    check(ended != 0 if code is None else ended == code, f"the launcher ended with {ended}")
    missing = [word for word in words if word not in said]
    check(not missing, f"the output lacks {missing}: {said[-1500:]}")
    reached = last_step(folder, "disturbed")
    again = complete(folder, "disturbed")
    kept = int(again.split("resuming from step ")[1].split()[0])
    differs = difference(folder, "straight", "disturbed")
    check(differs is None, f"{differs} differs from that of the undisturbed run")
    return Seen(f"exit {ended}, no process left, bit-identical after resuming", reached - kept)


@fault(28, "one rank is killed", "the job ends with an error, no process left, same model after resuming")
def rank_killed(lab: "Lab") -> Seen:
    return recovered(lab, "rank-killed", kill_rank, ["another process of this job is gone or does not answer"])


@fault(29, "one rank hangs (SIGSTOP)", "the job ends in time, prints stacks, names the rank")
def rank_hangs(lab: "Lab") -> Seen:
    words = [f"no progress for {HANG_SECONDS} s", "DOES NOT ANSWER", "most recent call first", LOOP_FRAME]
    return recovered(lab, "rank-hangs", stop_rank, words)


@fault(30, "the launcher is killed", "its ranks save and exit")
def launcher_killed(lab: "Lab") -> Seen:
    return recovered(lab, "launcher", kill_launcher, ["saved. Run the same command again"], -signal.SIGKILL)


@fault("28m", "the link between two machines is cut", "both ends stop with an error in time; same losses after")
def link_cut(lab: "Lab") -> Seen:
    command = [sys.executable, "-m", "chaos.equivalence.two_machines"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 77:
        raise NotHere(done.stderr.strip())
    if done.returncode:
        raise Differs(done.stdout[-2000:] + done.stderr[-1000:])
    return Seen("; ".join(line for line in done.stdout.splitlines() if not line.startswith("  ")))
