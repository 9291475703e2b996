"""Resume a run with another ZeRO stage, number of processes, precision or micro-batch and compare its losses.

    python -m chaos.equivalence.elastic [--checkpoint sharded]

Each cell is the largest relative difference of the training loss from one process that was never interrupted (in
fp32), over the steps after a checkpoint was loaded. The exit code is 1 if it exceeds its bound: 1e-5 in fp32, 2e-3 if
the precision changes to bf16. The command also fails if any step reads other rows, or reads them in another order.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from accelerate.utils import gather_object
from rich.console import Console
from rich.table import Table

from chaos.equivalence.ranks import BOUNDS, CLIP, LAYOUTS, MICRO, ROWS, batch, gap, start, text
from mini_llm.engine.batch import BatchSplit
from mini_llm.engine.checkpoint.format import load_checkpoint
from mini_llm.engine.checkpoint.saver import Saver
from mini_llm.engine.checkpoint.sharded_saver import ShardedSaver
from mini_llm.engine.cli import end_process
from mini_llm.engine.step import TrainContext, seed_step, train_step

ROOT = Path(__file__).parents[2]
SAVERS = {"full": Saver, "sharded": ShardedSaver}
# Number of steps before and after each change.
PART = 4
# name: (processes, ZeRO stage, micro-batch, precision) of each part of the run
CHAINS = {
    "1 -> 2 -> 1 processes": [(1, None, 2, "fp32"), (2, None, 2, "fp32"), (1, None, 2, "fp32")],
    "1 -> 2 with ZeRO 3 -> 1": [(1, None, 2, "fp32"), (2, 3, 2, "fp32"), (1, None, 2, "fp32")],
    "micro-batch 2 -> 4 -> 1": [(1, None, 2, "fp32"), (1, None, 4, "fp32"), (2, 2, 1, "fp32")],
    "fp32 -> bf16 -> fp32": [(1, None, 2, "fp32"), (2, 1, 2, "bf16"), (1, None, 2, "fp32")],
}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    optimizers: Annotated[str, typer.Option(help="Optimizers, separated by commas.")] = "adamw,muon",
    checkpoint: Annotated[str, typer.Option(help="Kind of checkpoint: full or sharded.")] = "full",
    worker: Annotated[Path | None, typer.Option(help="Internal: folder for checkpoints and losses.")] = None,
    job: Annotated[str, typer.Option(help="Internal: the jobs of this launch as JSON.")] = "",
) -> None:
    """Print the largest relative difference of the loss after every change of the layout of a run."""
    if worker is not None:
        work(worker, json.loads(job))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        end_process(0)
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        for optimizer in optimizers.split(","):
            gaps = measure(Path(name) / optimizer, optimizer, checkpoint)
            table = Table(
                "from \\ to, two processes",
                *LAYOUTS,
                title=f"{optimizer}, fp32, {checkpoint}, bound {BOUNDS['fp32']:.0e}",
            )
            for source in LAYOUTS:
                table.add_row(source, *(f"{gaps[f'{source} -> {target}']:.1e}" for target in LAYOUTS))
            Console(width=110).print(table)
            for chain in CHAINS:
                print(f"{optimizer}, {chain}: {gaps[chain]:.1e} (bound {bound(chain):.0e})")
            worst = max(worst, *(value / bound(key) for key, value in gaps.items()))
    sys.exit(worst > 1)


def bound(name: str) -> float:
    return BOUNDS["bf16" if "bf16" in name else "fp32"]


def measure(folder: Path, optimizer: str, checkpoint: str = "full") -> dict[str, float]:
    """The largest relative difference of the loss for each change. Raises RuntimeError if a step read other rows."""
    folder.mkdir(parents=True)
    whole = {"name": "whole", "load": None, "save": None, "first": 0, "steps": 3 * PART}
    launch(folder, 1, [{**whole, "layout": [None, MICRO, "fp32"], "optimizer": optimizer, "kind": checkpoint}])
    jobs = []
    for name, stage in LAYOUTS.items():
        layout = {"layout": [stage, MICRO, "fp32"], "optimizer": optimizer, "kind": checkpoint, "steps": PART}
        jobs.append({**layout, "name": f"before {name}", "load": None, "save": f"at {name}", "first": 0})
    for source in LAYOUTS:
        for target, stage in LAYOUTS.items():
            layout = {"layout": [stage, MICRO, "fp32"], "optimizer": optimizer, "kind": checkpoint, "steps": PART}
            jobs.append(
                {**layout, "name": f"{source} -> {target}", "load": f"at {source}", "save": None, "first": PART}
            )
    launch(folder, 2, jobs)
    # All chains share launches: one for each part and number of processes.
    for part in range(3):
        for processes in (1, 2):
            jobs = []
            for chain, parts in CHAINS.items():
                ranks, *layout = parts[part]
                if ranks == processes:
                    load = f"{chain} {part - 1}" if part else None
                    job = {"layout": layout, "optimizer": optimizer, "kind": checkpoint}
                    job |= {"load": load, "save": f"{chain} {part}"}
                    jobs.append({**job, "name": f"{chain} {part}", "first": part * PART, "steps": PART})
            if jobs:
                launch(folder, processes, jobs)
    seen = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return compare(seen)


def compare(seen: dict[str, dict]) -> dict[str, float]:
    whole = seen["whole"]
    for name, found in seen.items():
        expected = [whole["rows"][step] for step in range(found["first"], found["first"] + len(found["rows"]))]
        if found["rows"] != expected:
            raise RuntimeError(f"{name}: its steps read other rows than one process does")
    gaps = {}
    for source in LAYOUTS:
        for target in LAYOUTS:
            name = f"{source} -> {target}"
            gaps[name] = gap(seen[name]["losses"], whole["losses"][PART : 2 * PART])
    for chain in CHAINS:
        losses = [loss for part in range(3) for loss in seen[f"{chain} {part}"]["losses"]]
        gaps[chain] = gap(losses, whole["losses"])
    return gaps


def launch(folder: Path, processes: int, jobs: list[dict]) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"] if processes == 2 else []
    command = [sys.executable, "-m", *launcher, "chaos.equivalence.elastic", "--worker", str(folder), "--job"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_DEEPSPEED": "false"}
    done = subprocess.run([*command, json.dumps(jobs)], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])


def work(folder: Path, jobs: list[dict]) -> None:
    """Run `jobs` one after another on this rank."""
    for job in jobs:
        stage, micro, precision = job["layout"]
        training = start(stage, job["optimizer"], precision, micro=micro)
        if job["load"] is not None:
            directory = next((folder / job["load"] / "checkpoints").glob("step-*"))
            state = load_checkpoint(directory, training.model, training.optimizer, training.accelerator)
            assert state == {"step": job["first"]}, state
        steps = range(job["first"], job["first"] + job["steps"])
        losses, rows = advance(training, steps, micro)
        if job["save"] is not None:
            with SAVERS[job["kind"]](folder / job["save"], training, lambda directory: None, 1, {}) as saver:
                saver.save({"step": steps.stop})
                saver.finish()
        if training.accelerator.is_main_process:
            found = {"first": job["first"], "losses": losses, "rows": rows}
            (folder / f"{job['name']}.json").write_text(json.dumps(found))
        training.accelerator.wait_for_everyone()


def advance(training: TrainContext, steps: range, micro: int) -> tuple[list[float], list[list[int]]]:
    """(losses, row numbers that all ranks together read) of each step."""
    accelerator = training.accelerator
    split = BatchSplit(ROWS, micro, accelerator.num_processes, accelerator.process_index)
    losses, rows = [], []
    for step in steps:
        seed_step(0, step, accelerator.process_index)
        # The row number is the first column, so that it is split together with the tokens.
        numbered = np.hstack([np.arange(step * ROWS, (step + 1) * ROWS)[:, None], text(step)])
        parts = split.micro_batches(numbered)
        loss, _ = train_step(training, [batch(part[:, 1:]) for part in parts], 1.0, CLIP)
        losses.append(loss)
        mine = [part[:, 0].tolist() for part in parts]
        dealt = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
        rows.append([row for turn in zip(*dealt, strict=True) for part in turn for row in part])
    return losses, rows


if __name__ == "__main__":
    app()
