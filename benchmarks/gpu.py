"""What must be known about one GPU, in at most nine minutes: does everything run there, and how fast.

    python -m benchmarks.gpu --out gpu.json
    NANOGPT=checkout python -m benchmarks.gpu --data data/ --out gpu.json
    python -m benchmarks.gpu --toy --only fp32      # on a CPU, at toy sizes: tests this script itself

The parts run in order of worth, each in its own process with its own time limit; benchmarks/gpu_parts.py has them.
First the correctness checks, a few at a time: training in fp32, bf16 and fp16 (with loss scaling), resuming to the bit,
ZeRO 1, 2 and 3 on one rank with and without offload, generation, int8, a masked model and a classifier. Then, one at a
time: 124 M parameters at T 1,024 beside nanoGPT (if NANOGPT is set) and transformers, decoding, and a run on the
reviews (or on the built-in corpus) for the time that is left.

The JSON file is written again after each part, so that an interrupted run keeps what it has. `status` of a part is ok,
failed, timeout or skipped (no time left); `mfu` divides by the matrix product ceiling that the part `machine` measured.
The exit code is 1 unless every part is ok.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import ROOT, head
from mini_llm.engine.run.files import write_json

MINUTES = 9.0
LEAST_SECONDS = 10.0  # a part does not start with less time
TAIL = 3000  # characters of a failed part's output to keep


@dataclass(frozen=True)
class Part:
    """A command of gpu_parts with its time limit in seconds; `together`: may run beside other such parts."""

    name: str
    limit: float
    arguments: tuple[str, ...]
    together: bool = False


@dataclass
class Result:
    """What became of a part. `figures` merges the JSON objects that it printed, also those before a failure."""

    part: str
    status: str
    exit_code: int | None = None
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    output: str = ""


CHECKS = ("fp32", "resume", "bf16", "fp16", "zero1", "zero2", "zero3", "generate", "int8", "mlm")
SIZES = {"width": 768, "layers": 12, "length": 1024, "vocabulary": 50304, "rows": 32, "accumulation": 2, "steps": 8}
TOY_SIZES = {"width": 64, "layers": 2, "length": 32, "vocabulary": 512, "rows": 2, "accumulation": 2, "steps": 1}
CASES = {
    "ours, compiled": {"kind": "ours", "optimizer": "muon", "compile": True},
    "nanoGPT": {"kind": "nanogpt", "bf16": True, "compile": True},
    "ours": {"kind": "ours", "optimizer": "muon"},
    "transformers": {"kind": "transformers", "bf16": True},
    "ours, AdamW, compiled": {"kind": "ours", "optimizer": "adamw", "compile": True},
}


def parts(toy: bool, data: Path | None) -> list[Part]:
    """All parts in order of worth."""
    flag = ("--toy",) if toy else ()
    found = [Part("machine", 60, ("machine", *flag))]
    # fp16 and ZeRO's offload are for GPUs: a toy run on a CPU leaves fp16 out.
    found += [Part(name, 100, ("check", name, *flag), True) for name in CHECKS if not (toy and name == "fp16")]
    for name, case in CASES.items():
        if case["kind"] == "nanogpt" and "NANOGPT" not in os.environ:
            continue
        shape = {"model": "gpt", "checkpointing": False, **(TOY_SIZES if toy else SIZES), **case}
        if toy:
            shape["compile"] = False
        found.append(Part(f"124 M, {name}", 90, ("training", json.dumps(shape))))
    found.append(Part("decode", 60, ("decode", *flag)))
    reviews = ("--data", str(data.resolve())) if data else ()
    found.append(Part("reviews", 345, ("reviews", *reviews, *flag)))
    return found


def run_part(part: Part, seconds: float, command: Sequence[str] | None = None) -> Result:
    """Run a part for at most `seconds`. Its whole process group is killed when the time is up."""
    command = command or [sys.executable, "-m", "benchmarks.gpu_parts", *part.arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "GPU_SECONDS": f"{seconds:.0f}"}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
            status = "failed" if code else "ok"
        except subprocess.TimeoutExpired:
            code, status = None, "timeout"
        finally:
            # Also ends what a part left behind: workers of torch.compile, launchers.
            _kill_group(process)
        output.seek(0)
        text = output.read()
    figures: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith('{"'):
            figures |= json.loads(line)
    return Result(
        part.name, status, code, round(time.monotonic() - start, 1), figures, "" if status == "ok" else text[-TAIL:]
    )


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Record:
    """The results so far, written to `path` after each."""

    def __init__(self, path: Path, order: Sequence[Part]) -> None:
        self.path, self.order = path, [part.name for part in order]
        self.results: dict[str, Result] = {}
        self.lock = threading.Lock()
        self.head = head("benchmarks.gpu", sys.argv[1:])

    def add(self, result: Result) -> None:
        with self.lock:
            self.results[result.part] = result
            rows = [asdict(self.results[name]) for name in self.order if name in self.results]
            write_json(self.path, self.head | {"parts": with_mfu(rows)})
            print(f"{result.part}: {result.status}, {result.seconds:.0f} s, {json.dumps(result.figures)}", flush=True)
            if result.status == "failed":
                print(result.output, file=sys.stderr, flush=True)


def with_mfu(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `mfu` to every row with tokens/s; peers are counted with the FLOPs per token of our model of equal size."""
    merged: dict[str, Any] = {}
    for row in rows:
        merged |= {key: row["figures"][key] for key in ("bf16_flops", "flops_per_token") if key in row["figures"]}
    if len(merged) == 2:
        for row in rows:
            if "training_tokens_per_second" in row["figures"]:
                speed = row["figures"]["training_tokens_per_second"] * merged["flops_per_token"]
                row["figures"] = row["figures"] | {"mfu": round(speed / merged["bf16_flops"], 4)}
    return rows


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the results.")] = Path("gpu.json"),
    data: Annotated[Path | None, typer.Option(help="Folder with imdb/unsup.jsonl.gz; default: built-in text.")] = None,
    minutes: Annotated[float, typer.Option(help="Wall time of everything.")] = MINUTES,
    only: Annotated[list[str] | None, typer.Option(help="Run this part; repeat for several.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Checks that run at the same time.")] = 4,
    toy: Annotated[bool, typer.Option("--toy", help="Toy sizes, on a CPU.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the parts and run nothing.")] = False,
) -> None:
    """Run the parts in order of worth, and write the JSON file after each."""
    chosen = parts(toy, data)
    unknown = sorted(set(only or []) - {part.name for part in chosen})
    if unknown:
        print(f"benchmarks.gpu: unknown part {unknown[0]}; choose from {[p.name for p in chosen]}", file=sys.stderr)
        raise SystemExit(2)
    chosen = [part for part in chosen if not only or part.name in only]
    if listing:
        for part in chosen:
            print(f"{part.name}: at most {part.limit:.0f} s")
        return
    deadline = time.monotonic() + 60 * minutes
    record = Record(out, chosen)

    def run(part: Part) -> None:
        left = deadline - time.monotonic()
        record.add(Result(part.name, "skipped") if left < LEAST_SECONDS else run_part(part, min(part.limit, left)))

    alone = [part for part in chosen if not part.together]
    if alone and alone[0].name == "machine":
        run(alone.pop(0))  # the ceiling is measured on a quiet machine
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, [part for part in chosen if part.together]))
    for part in alone:
        run(part)
    print(out)
    raise SystemExit(any(result.status != "ok" for result in record.results.values()))


if __name__ == "__main__":
    typer.run(main)
