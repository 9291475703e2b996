"""Speed beside other work: training, decoding and encoding while 0, 1 or 4 other processes are busy, in turns.

    python -m benchmarks.busy
    python -m benchmarks.busy --policy "spin 1000:GOMP_SPINCOUNT=1000" --policy "one thread:OMP_NUM_THREADS=1"
    python -m benchmarks.busy --old /path/to/another/checkout

Compares our setting of OpenMP (mini_llm/__init__.py) with libgomp's default, or with the given environments. The fair
share of C cores beside N busy processes is C / (C + N) of the best speed on the quiet machine. The goals: at least 0.97
of the other's speed on a quiet machine, and at least 0.67 of the fair share beside other work.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.measure import ROOT, Comparison, interleave, publish

OURS = "ours"
# Spin at barriers as libgomp does by default.
DEFAULT_POLICY = "libgomp's default:GOMP_SPINCOUNT=300000"
QUIET_GOAL, BUSY_GOAL = 0.97, 0.67
LOOP = [sys.executable, "-c", "while True: pass"]

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    neighbours: Annotated[str, typer.Option(help="Numbers of busy processes.")] = "0,1,4",
    work: Annotated[str, typer.Option(help="What to measure: train, decode, encode.")] = "train,decode,encode",
    policy: Annotated[list[str] | None, typer.Option(help="NAME:VARIABLE=VALUE,... to compare with.")] = None,
    old: Annotated[Path | None, typer.Option(help="Another checkout, to compare with its code.")] = None,
    rounds: int = 3,
    seconds: Annotated[float, typer.Option(help="Length of one measurement.")] = 3.0,
    out: Annotated[Path | None, typer.Option(help="Folder for busy.json.")] = None,
) -> None:
    """Print the speeds, their ratios and the shares of the fair share."""
    if context.invoked_subcommand:
        return
    policies: dict[str, tuple[Path, dict[str, str]]] = {OURS: (ROOT, {})}
    for given in policy or ([] if old else [DEFAULT_POLICY]):
        name, _, settings = given.partition(":")
        policies[name] = (ROOT, dict(setting.split("=", 1) for setting in settings.split(",")))
    if old is not None:
        policies["old"] = (old.resolve(), {})
    cores = len(os.sched_getaffinity(0))
    comparisons = []
    for kind in work.split(","):
        workers = {name: Worker(kind, *where, seconds) for name, where in policies.items()}
        best = 0.0
        for count in map(int, neighbours.split(",")):
            with busy(count):
                figures = interleave({name: worker.turn for name, worker in workers.items()}, rounds)
            goals = {} if count else dict.fromkeys(list(policies)[1:], QUIET_GOAL)
            comparison = Comparison(f"{kind}, {count} neighbours", workers[OURS].unit, figures, goals=goals)
            if count == 0:
                best = max(comparison.medians.values())
            elif best:
                fair = best * cores / (cores + count)
                comparison.notes = {name: median(values) / fair for name, values in figures.items()}
            comparisons.append(comparison)
        for worker in workers.values():
            worker.close()
    publish(comparisons, "busy", out)
    for comparison in comparisons:
        if comparison.notes:
            shares = ", ".join(f"{name} {share:.2f}" for name, share in comparison.notes.items())
            print(f"{comparison.title}: share of the fair share (goal {BUSY_GOAL}): {shares}")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` processes busy."""
    others = [subprocess.Popen(LOOP) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


class Worker:
    """One kind of work in its own process with these environment variables; it waits for its turn without running."""

    def __init__(self, kind: str, checkout: Path, environment: dict[str, str], seconds: float) -> None:
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
        # The worker is this file with the code of its checkout.
        self.process = subprocess.Popen(
            [sys.executable, __file__, "worker", kind, str(seconds)],
            cwd=checkout,
            env=mine | environment | {"PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.unit = UNITS[kind]
        self.turn()

    def turn(self) -> float:
        """Work for the given time; returns the speed."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"speed"'):
                return json.loads(line)["speed"]
        sys.exit(f"a worker ended with status {self.process.wait()}")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@app.command()
def worker(kind: str, seconds: float) -> None:
    """Internal: for each line of input, work for `seconds` and print the speed."""
    import mini_llm  # noqa: F401  sets up OpenMP before torch is imported

    unit = WORK[kind]()
    for _ in range(3):
        unit()
    for _ in sys.stdin:
        done, start = 0.0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            done += unit()
        print(json.dumps({"speed": done / elapsed}), flush=True)


def _train(width: int, layers: int, vocabulary: int) -> Callable[[], float]:
    """A training step of a GPT; returns its tokens."""
    from mini_llm.engine.distributed.processes import make_accelerator, start_processes
    from mini_llm.engine.step import prepare, train_step
    from mini_llm.model import CausalLM
    from pretrain.config import PretrainConfig
    from pretrain.plan.setup import MemorySetup
    from pretrain.plan.trial_steps import random_batch
    from pretrain.presets import build_config

    rows, length = 16, 128
    config = PretrainConfig(micro_batch_size=rows, budget=None, runtime={"device": "cpu"})
    start_processes(config.runtime)
    sizes = {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": width // 64, "max_position_embeddings": length}
    shape = build_config("gpt", sizes)
    setup = MemorySetup(rows, length, length)
    training = prepare(CausalLM(shape), config, make_accelerator(config.runtime, 1, rows, 1.0))

    def step() -> float:
        train_step(training, [random_batch(shape, setup)], 1.0, 1.0)
        return rows * length

    return step


def _decode() -> Callable[[], float]:
    """Greedy decoding by a GPT with 7 M parameters, a text of 64 tokens at a time; returns its tokens."""
    import torch

    from mini_llm.engine.kernels.decode import CompiledStep
    from mini_llm.model import CausalLM, KVCache, ModelConfig

    tokens = 64
    sizes = {"vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = CausalLM(ModelConfig(causal=True, **sizes, max_position_embeddings=tokens)).eval()
    step = CompiledStep(model.bfloat16())

    def text() -> float:
        cache, token = KVCache(model.config, 1, tokens, dtype=torch.bfloat16), 1
        with torch.no_grad():
            for _ in range(tokens):
                token = int(step([token], [cache]).argmax())
        return tokens

    return text


def _encode() -> Callable[[], float]:
    """Encoding of our own sources; returns their megabytes."""
    from mini_llm.tokenization.config import TokenizerConfig
    from mini_llm.tokenization.tokenizer import Tokenizer
    from tokenizer.sample import draw_sample
    from tokenizer.train import train_model

    texts = [path.read_text() for path in sorted(ROOT.glob("mini_llm/**/*.py"))]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer(train_model(TokenizerConfig(vocab_size=1024), draw_sample(texts, 1 << 20, 0)), folder)
    size = sum(len(text.encode()) for text in texts) / 1e6

    def encode() -> float:
        tokenizer.encode_batch(texts)
        return size

    return encode


UNITS = {"train": "tokens/s", "train-large": "tokens/s", "decode": "tokens/s", "encode": "MB/s"}
WORK = {
    "train": partial(_train, 128, 4, 2048),
    "train-large": partial(_train, 384, 6, 4096),
    "decode": _decode,
    "encode": _encode,
}

if __name__ == "__main__":
    app()
