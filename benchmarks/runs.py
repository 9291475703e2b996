"""Our own commands as a benchmark runs them: in a folder of their own, timed from process start to exit."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT

# What a run of this budget takes beside its training (start, tokenizer, encoding, evaluation, saving).
PROBE_SECONDS = 5


@dataclass
class Run:
    """`seconds`: wall time of the process; `inner`: of the run, as its finished.json says; `summary`: its figures."""

    seconds: float
    inner: float
    summary: dict[str, Any]


def stage(folder: Path, *arguments: str) -> float:
    """Run `python -m ARGUMENTS` in `folder`; its wall time. Ends the program when it fails."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, env=environment(), stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"python -m {' '.join(arguments)}: exit code {done.returncode}")
    return time.perf_counter() - start


def pretrain(folder: Path, run: str, *arguments: str) -> Run:
    """`python -m pretrain` in `folder`, as the run `run`."""
    seconds = stage(folder, "pretrain", *arguments, f"run={run}")
    return read_run(folder / "runs" / run, seconds)


def read_run(directory: Path, seconds: float) -> Run:
    summary = json.loads((directory / "summary.json").read_text())
    finished = json.loads((directory / "finished.json").read_text())
    return Run(seconds, finished["seconds"], summary)


def budget_for(seconds: float, folder: Path, *arguments: str) -> float:
    """The training budget with which `pretrain` takes `seconds` in all, from a run of a few seconds in `folder`."""
    probe = pretrain(folder, "probe", "--budget", f"{PROBE_SECONDS}s", *arguments)
    left = seconds - (probe.seconds - PROBE_SECONDS)
    if left < PROBE_SECONDS:
        sys.exit(f"{seconds:.0f} s are too few: all but the training takes {probe.seconds - PROBE_SECONDS:.0f} s here")
    return left


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": os.environ.get("WANDB_MODE", "disabled")}
