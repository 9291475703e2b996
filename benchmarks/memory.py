"""Peak memory of training, predicted by `python -m pretrain plan` and measured in fresh processes.

    python -m benchmarks.memory table
    python -m benchmarks.memory table --tensors

Three sizes on one process, and one of them on two ranks with DDP and each ZeRO stage, all with and without gradient
checkpointing. Each case trains three steps of two micro-batches on random tokens and reports the peak resident memory
of the process (VmHWM) and the part of it that was added after the model existed. With --tensors every large tensor gets
its own pages and returns them when freed: resident memory is then that of live tensors, without the fragmentation of
glibc's heap.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parent.parent
# hidden_size, num_hidden_layers, vocab_size, length, rows
SIZES = {"256 x 4": (256, 4, 8192, 256, 4), "384 x 6": (384, 6, 8192, 256, 4), "512 x 8": (512, 8, 8192, 512, 2)}
TWO_RANKS = "384 x 6"
STEPS = 3

app = typer.Typer(add_completion=False)


@app.command()
def table(
    only: Annotated[str, typer.Option(help="Run sizes whose name starts with this.")] = "",
    optimizer: Annotated[str, typer.Option(help="Optimizer: adamw or muon.")] = "muon",
    precision: Annotated[str, typer.Option(help="Precision: fp32 or bf16.")] = "fp32",
    ranks: Annotated[int, typer.Option(help="Run only cases with this many ranks; 0: all.")] = 0,
    tensors: Annotated[bool, typer.Option("--tensors", help="Measure live tensors only.")] = False,
) -> None:
    """Run every case in its own processes and print predicted and measured memory and their ratio."""
    cases = [(name, 1, 0) for name in SIZES] + [(TWO_RANKS, 2, stage) for stage in range(4)]
    print("                                   whole process                 model")
    print("size      ranks ZeRO checkpointing predicted  measured  ratio   predicted  measured  ratio")
    for name, processes, stage in cases:
        for every in (0, 1):
            if name.startswith(only) and ranks in (0, processes):
                settings = [name, str(processes), str(stage), str(every), optimizer, precision]
                for found in _run(settings, processes, stage, tensors):
                    row = f"{name:9} {processes:5} {stage:4} {every:13}"
                    for predicted, measured in (found["process"], found["model"]):
                        row += f" {predicted / 1e6:6,.0f} MB {measured / 1e6:6,.0f} MB {predicted / measured:6.2f}  "
                    print(row, flush=True)


def _run(settings: list[str], ranks: int, stage: int, tensors: bool) -> list[dict]:
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_DEEPSPEED": str(stage > 0).lower(),
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
    }
    if tensors:
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "BENCHMARK_TENSORS": "1"}
    result = subprocess.run(
        [*launcher, "benchmarks.memory", "case", *settings], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    if result.returncode:
        sys.exit(result.stderr[-3000:])
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"process"')]


@app.command()
def case(name: str, ranks: int, stage: int, every: int, optimizer: str, precision: str) -> None:
    """Internal: run one case in this process (or rank) and print a line of JSON."""
    from dataclasses import replace

    import torch

    from mini_llm.engine.config import build_config
    from mini_llm.engine.distributed import processes as runtime
    from mini_llm.model import HEADS, ModelConfig
    from pretrain.config import PretrainConfig
    from pretrain.plan.draft import DraftTokenizer, memory_setup
    from pretrain.plan.fit import process_bytes
    from pretrain.plan.memory import predict_memory
    from pretrain.plan.sizes import make_plan
    from pretrain.plan.trial_steps import run_trial_steps

    width, layers, vocabulary, length, rows = SIZES[name]
    tree = {
        "budget": None,
        "micro_batch_size": rows,
        "global_batch_size": 2 * rows * ranks,
        "sizes": {"hidden_size": width, "num_hidden_layers": layers, "max_position_embeddings": length},
        "runtime": {"gradient_checkpointing": every, "precision": precision, "device": "cpu"},
        "optim": {"name": optimizer},
    }
    config, device = build_config(PretrainConfig, tree, "benchmark"), torch.device("cpu")
    plan = make_plan(config, None, DraftTokenizer(vocabulary), 10**9, None, ranks, device)
    setup = memory_setup(config, plan, ranks, stage, device)
    process = process_bytes(setup)
    if os.environ.get("BENCHMARK_TENSORS"):
        runtime.keep_freed_memory = lambda: None
    runtime.start_processes(config.runtime)
    # What the first step imports and loads belongs to the process, not to the model.
    tiny = ModelConfig(64, 64, 1, 1, 8, causal=True)
    if stage:
        # With DeepSpeed, Accelerate prepares only one model.
        import deepspeed  # noqa: F401
        import torch._dynamo

        HEADS["causal"](tiny)(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    else:
        run_trial_steps(config, tiny, replace(setup, rows=1, length=8, labels=8), 2, 1e9)
    before = _resident("VmRSS")
    found = predict_memory(plan.config, setup)
    predicted = found.tensors if os.environ.get("BENCHMARK_TENSORS") else found.resident
    run_trial_steps(config, plan.config, setup, STEPS, 1e9)
    peak = _resident("VmHWM")
    line = {"process": (process + predicted, peak), "model": (predicted, peak - before)}
    # A single write keeps the lines of two ranks from mixing.
    sys.stdout.write(json.dumps(line) + "\n")


def _resident(key: str) -> float:
    """Bytes from /proc: VmRSS is the current value, VmHWM the peak (ru_maxrss would include the parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


if __name__ == "__main__":
    app()
