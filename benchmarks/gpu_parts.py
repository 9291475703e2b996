"""The parts of benchmarks.gpu, each a command that prints its figures as JSON objects and exits with 1 if it fails.

    python -m benchmarks.gpu_parts machine
    python -m benchmarks.gpu_parts check zero2 --toy

A check writes into the current folder. With --toy everything runs on the CPU.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import ROOT

app = typer.Typer(add_completion=False)
Toy = Annotated[bool, typer.Option("--toy", help="Toy sizes, on a CPU.")]
STEPS = 8
SETTINGS = [
    *("--data", "text.txt", f"max_steps={STEPS}", "budget=null", "evaluate_every=4", "init_embeddings=random"),
    *("sizes.hidden_size=64", "sizes.num_hidden_layers=2", "sizes.num_attention_heads=2", "vocab_size=640"),
    *("sizes.max_position_embeddings=64", "global_batch_size=8", "micro_batch_size=4", "optim.lr=0.01"),
]


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def require(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"FAILED: {message}")


@app.command()
def machine(toy: Toy = False) -> None:
    """What the device is, and its matrix product ceiling by number type."""
    import torch

    from mini_llm.engine.device import default_device
    from mini_llm.engine.flops import measure_matmul

    device = default_device("cpu" if toy else "auto")
    require(toy or device.type == "cuda", "no CUDA GPU here; --toy runs the parts on a CPU")
    say(device=device.type, torch=torch.__version__)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        say(name=properties.name, memory_gb=round(properties.total_memory / 1e9, 1), cuda=torch.version.cuda)
    say(bf16_flops=measure_matmul(device, torch.bfloat16, 0.05 if toy else 3))
    for name, dtype in (("fp16", torch.float16), ("fp32", torch.float32)):
        if not toy:
            say(**{f"{name}_flops": measure_matmul(device, dtype, 1)})


@app.command()
def check(name: str, toy: Toy = False) -> None:
    """Run one correctness check in the current folder."""
    device = "cpu" if toy else "auto"
    if name in ("fp32", "bf16", "fp16"):
        precision(name, device)
    elif name.startswith("zero"):
        zero(int(name[-1]), device)
    else:
        {"resume": resume, "generate": generate, "int8": int8, "mlm": masked}[name](device)


def command(*arguments: str, fails: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGUMENTS`; stops the check if the command fails, or with `fails` if it does not."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments], env={**os.environ, **environment}, capture_output=True, text=True
    )
    what = "succeeded" if fails else f"ended with {result.returncode}"
    require(bool(result.returncode) == fails, f"{' '.join(arguments)} {what}: {result.stdout}\n{result.stderr}")
    return result


def pretrain(run: str, device: str, *settings: str, **more: Any) -> list[float]:
    """Train a tiny model in this folder; returns the loss of each step."""
    if not Path("text.txt").exists():
        Path("text.txt").write_text("\n\n".join(path.read_text() for path in sorted(ROOT.glob("mini_llm/model/*.py"))))
    command("pretrain", *SETTINGS, f"run={run}", f"runtime.device={device}", *settings, **more)
    return losses(run)


def losses(run: str) -> list[float]:
    rows = map(json.loads, Path("runs", run, "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def precision(name: str, device: str) -> None:
    """Training in this number type falls, and stays near fp32."""
    found = pretrain(name, device, f"runtime.precision={name}")
    say(losses=found)
    require(len(found) == STEPS and found[-1] < found[0] - 0.1, f"the loss does not fall: {found}")
    if name == "fp32":
        return
    gap = abs(found[-1] / pretrain("fp32", device, "runtime.precision=fp32")[-1] - 1)
    say(gap_to_fp32=gap)
    require(gap < 0.03, f"the last loss differs from fp32 by {gap:.1%}")
    if name == "fp16":
        loss_scaling()


def loss_scaling() -> None:
    """An overflow lowers the scale and changes no weight; the next step trains."""
    import torch

    from chaos.equivalence.ranks import advance, start

    training = start(None, "muon", "fp16", device="auto")
    advance(training, range(2))
    scaler = training.accelerator.scaler
    require(scaler is not None, "fp16 has no loss scaler")
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    scale = scaler.get_scale()
    scaler.update(2.0**40)  # so large that the gradients overflow
    advance(training, range(2, 3))
    say(scale=scale, scale_after_overflow=scaler.get_scale())
    same = all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
    require(same and scaler.get_scale() < 2.0**40, "an overflow changed the weights, or did not lower the scale")
    scaler.update(scale)
    (loss, _) = advance(training, range(3, 4))[0]
    changed = not all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
    require(changed and loss == loss, "no step after an overflow")


def resume(device: str) -> None:
    """A killed run continues with the losses of an undisturbed one, to the bit if the device repeats itself at all."""
    settings = ["save_every=2", "runtime.precision=auto"]
    whole = pretrain("whole", device, *settings)
    again = pretrain("again", device, *settings)
    say(repeats_itself=whole == again, gap_between_equal_runs=largest_gap(whole, again))
    arguments = ["pretrain", *SETTINGS, "run=killed", f"runtime.device={device}", *settings]
    command(*arguments, fails=True, LLM_FAULT=f"step::{STEPS}=kill")
    require(any(Path("runs/killed/checkpoints").iterdir()), "the killed run left no checkpoint")
    command(*arguments)
    resumed = losses("killed")
    gap = largest_gap(whole, resumed)
    say(resumed_to_the_bit=whole == resumed, largest_gap=gap)
    weights = [Path("runs", run, "model", "model.safetensors").read_bytes() for run in ("whole", "again", "killed")]
    say(equal_runs_have_equal_weights=weights[0] == weights[1], resumed_weights_are_equal=weights[0] == weights[2])
    exact = weights[0] == weights[2] or weights[0] != weights[1]
    require(gap < 1e-3 and exact, f"resuming changed the losses by up to {gap}: {whole} {resumed}")


def largest_gap(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def zero(stage: int, device: str) -> None:
    """ZeRO on one rank, with and without offload to the CPU, trains as one process without DeepSpeed does."""
    from chaos.equivalence.ranks import advance, gap, start

    place: Any = device
    bounds = {"fp32": 1e-4, "bf16": 1e-2}

    def run(stage: int | None, kind: str, file: str | None = None) -> list[float]:
        return [loss for loss, _ in advance(start(stage, "muon", kind, file=file, device=place), range(STEPS))]

    # Without DeepSpeed first: it leaves a process group behind.
    references = {kind: run(None, kind) for kind in bounds}
    Path("offload.json").write_text(json.dumps({"zero_optimization": offload(stage)}))
    for kind, bound in bounds.items():
        reference = references[kind]
        for name, file in (("", None), ("_offload", "offload.json")):
            found = run(stage, kind, file)
            difference = gap(found, reference)
            say(**{f"{kind}{name}_gap": difference})
            require(difference < bound, f"ZeRO {stage}{name} in {kind}: {found}, without DeepSpeed {reference}")


def offload(stage: int) -> dict[str, dict[str, str]]:
    where = {"device": "cpu"}
    return {"offload_optimizer": where, **({"offload_param": where} if stage == 3 else {})}


def generate(device: str) -> None:
    """Greedy text is the same on the device and on the CPU, alone and in a batch; bf16 runs."""
    pretrain("gpt", device, "runtime.precision=fp32")
    place = "cpu" if device == "cpu" else "cuda"

    def text(*options: str) -> str:
        greedy = ("--temperature", "0", "--repetition-penalty", "1.5", "--max-new-tokens", "24", "--json")
        return command("generate", "runs/gpt", *options, *greedy).stdout

    expected = json.loads(text("def forward(", "--device", "cpu", "--no-compile", "--dtype", "fp32"))["text"]
    found = json.loads(text("def forward(", "--device", place, "--dtype", "fp32"))["text"]
    require(found == expected, f"on {place}: {found!r}, on the CPU: {expected!r}")
    Path("prompts.txt").write_text("def forward(\nclass \ndef forward(\n")
    rows = [
        json.loads(row)["text"]
        for row in text("--file", "prompts.txt", "--device", place, "--dtype", "fp32").splitlines()
    ]
    require(len(rows) == 3 and rows[0] == rows[2] == expected, f"in a batch: {rows}")
    text("def forward(", "--device", place, "--dtype", "bf16")
    say(same_text_as_cpu=True, text=found)


def int8(device: str) -> None:
    """int8 generates on the CPU of this machine, and says on a GPU that it needs a CPU."""
    pretrain("gpt", device, "runtime.precision=fp32")
    options = ("generate", "runs/gpt", "def ", "--max-new-tokens", "8", "--dtype", "int8", "--device")
    text = command(*options, "cpu").stdout
    if device != "cpu":
        result = command(*options, "cuda", fails=True)
        require("needs a CPU" in result.stderr and result.returncode == 2, result.stderr)
    say(int8_text=text)


def masked(device: str) -> None:
    """A masked model trains, and a classifier on top of it."""
    found = pretrain("mlm", device, "--model", "mlm")
    say(mlm_losses=found)
    words = {"fruit": ["apple", "pear", "plum"], "metal": ["iron", "tin", "lead"]}
    rows = [
        f"{a} {b} {i % 7},{label}" for label, names in words.items() for a in names for b in names for i in range(6)
    ]
    Path("labels.csv").write_text("text,label\n" + "\n".join(dict.fromkeys(rows)) + "\n")
    command("finetune", "--model", "runs/mlm", "--data", "labels.csv", "run=classifier", "max_steps=4", "budget=null",
            f"runtime.device={device}")  # fmt: skip
    say(classifier_trained=True)


@app.command()
def training(case: str) -> None:
    """Tokens/s and peak memory of one case of benchmarks.training; half the rows if the memory does not suffice."""
    shape = json.loads(case)
    while True:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.training", "worker", json.dumps(shape)],
            input="go\n" * 3,
            capture_output=True,
            text=True,
        )
        if process.returncode == 0 or "out of memory" not in process.stderr.lower() or shape["rows"] == 1:
            break
        shape["rows"] //= 2
    require(process.returncode == 0, process.stderr)
    turns = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"wall"')]
    tokens = shape["length"] * shape["rows"] * shape["accumulation"] * shape["steps"]
    say(
        training_tokens_per_second=sorted(tokens / turn["wall"] for turn in turns)[len(turns) // 2],
        peak_memory_gb=round(turns[-1]["peak_mb"] / 1e3, 2),
        seconds_to_first_step=round(turns[-1]["first"], 1),
        rows=shape["rows"],
    )
    if "flops" in turns[-1]:
        say(flops_per_token=turns[-1]["flops"])


@app.command()
def decode(toy: Toy = False) -> None:
    """Tokens/s of greedy decoding with 110 M parameters: one text, and 16 at once; beside transformers."""
    from benchmarks.decoding import SIZES, make_model

    sizes = {"vocab_size": 640, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    make_model(Path("model"), sizes if toy else SIZES["110 M"])
    place, tokens, many = ("cpu", 8, 2) if toy else ("cuda", 128, 16)
    for kind in ("bf16", "fp32"):
        write = ours(kind, place, tokens)
        write(1)
        say(**{f"ours_{kind}_{rows}": speed(write, rows, tokens) for rows in (1, many)})
        if not toy:
            write = transformers(kind, place, tokens)
            write(1)
            say(**{f"transformers_{kind}_{rows}": speed(write, rows, tokens) for rows in (1, many)})


PROMPT = list(range(100, 116))


def ours(kind: str, place: str, tokens: int) -> Callable[[int], Any]:
    """A function that writes this many texts of `tokens` tokens."""
    from generate.config import GenerateConfig
    from generate.decode import Sample
    from generate.load import load_generator

    generator = load_generator(Path("model"), GenerateConfig(temperature=0, max_new_tokens=tokens), place, kind)
    generator.end_ids = set()
    return lambda rows: list(generator.write([Sample(i, "", [200 + i, *PROMPT]) for i in range(rows)]))


def transformers(kind: str, place: str, tokens: int) -> Callable[[int], Any]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    peer = AutoModelForCausalLM.from_pretrained("model", dtype=dtype).to(place).eval()

    def write(rows: int) -> None:
        ids = torch.tensor([PROMPT] * rows, device=place)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        peer.generate(ids, **options, max_new_tokens=tokens)

    return write


def speed(write: Callable[[int], Any], rows: int, tokens: int) -> float:
    import torch

    start = time.perf_counter()
    write(rows)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return rows * tokens / (time.perf_counter() - start)


@app.command()
def reviews(data: Annotated[Path | None, typer.Option(help="Folder with imdb/.")] = None, toy: Toy = False) -> None:
    """Bits per byte of a run with a budget: five minutes, or what is left of the time in GPU_SECONDS."""
    seconds = float(os.environ.get("GPU_SECONDS", "345"))
    budget = 3 if toy else min(300, max(10, seconds - 45))  # the rest: start, corpus, tokenizer, saving
    text = ["--data", str(data / "imdb" / "unsup.jsonl.gz")] if data else []
    if toy:
        text = SETTINGS[:2]
        Path("text.txt").write_text((ROOT / "README.md").read_text())
    command("pretrain", *text, "--budget", f"{budget:.0f}s", "run=reviews", *(["runtime.device=cpu"] if toy else []))
    summary = json.loads(Path("runs/reviews/summary.json").read_text())
    keys = ("val/bpb", "val/loss", "unigram_bpb", "parameters", "tokens", "steps", "mfu", "tokens_per_second")
    timing = [json.loads(line) for line in Path("runs/reviews/timing.jsonl").read_text().splitlines()]
    last = {key: value for row in timing[-20:] for key, value in row.items() if isinstance(value, (int, float))}
    say(budget=budget, **{key: value for key, value in {**last, **summary}.items() if key in (*keys, "step")})


if __name__ == "__main__":
    app()
