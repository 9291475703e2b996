"""Run our commands for a benchmark: in a given folder, timed from process start to exit."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT

# Budget of the probe run that measures what a run needs besides training.
PROBE_SECONDS = 5


@dataclass
class Run:
    """`seconds` is the wall time of the process, `inner` that of the run by finished.json, `summary` its results."""

    seconds: float
    inner: float
    summary: dict[str, Any]


def stage(folder: Path, *arguments: str) -> float:
    """Run `python -m ARGUMENTS` in `folder`; returns its wall time. Exits if the command fails."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, env=environment(), stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"python -m {' '.join(arguments)}: exit code {done.returncode}")
    return time.perf_counter() - start


def pretrain(folder: Path, run: str, *arguments: str) -> Run:
    """Run `python -m pretrain` in `folder` with run=`run`."""
    seconds = stage(folder, "pretrain", *arguments, f"run={run}")
    return read_run(folder / "runs" / run, seconds)


def read_run(directory: Path, seconds: float) -> Run:
    summary = json.loads((directory / "summary.json").read_text())
    finished = json.loads((directory / "finished.json").read_text())
    return Run(seconds, finished["seconds"], summary)


def budget_for(seconds: float, folder: Path, *arguments: str) -> float:
    """The budget with which `pretrain` takes `seconds` in all, estimated from a short run in `folder`."""
    probe = pretrain(folder, "probe", "--budget", f"{PROBE_SECONDS}s", *arguments)
    left = seconds - (probe.seconds - PROBE_SECONDS)
    if left < PROBE_SECONDS:
        sys.exit(f"{seconds:.0f} s are too few: besides training a run takes {probe.seconds - PROBE_SECONDS:.0f} s")
    return left


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": os.environ.get("WANDB_MODE", "disabled")}
