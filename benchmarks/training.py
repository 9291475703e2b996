"""Training speed and peak memory at equal sizes against nanoGPT, nanochat and transformers, in interleaved rounds.

    NANOGPT=checkout python -m benchmarks.training main --width 384 --layers 6 --length 256 --vocabulary 4096
    NANOCHAT=checkout python -m benchmarks.training main --only "ours, Muon;nanochat"
    python -m benchmarks.training main --model mlm --width 256 --vocabulary 8192
    python -m benchmarks.training main --width 768 --layers 12 --length 1024 --rows 1 --only "ours;transf"
    python -m benchmarks.training main --width 768 --layers 12 --length 1024 --vocabulary 50304 --rows 32   # on a GPU

Each case runs in its own process, which waits for its turn. All train on random tokens, with the same matrix sizes,
rows and tokens per step.

nanoGPT: its model.py and its optimizer, in fp32 without torch.compile (as documented for a CPU), and with torch.compile
in fp32 and with bf16 autocast (its train.py ignores dtype on a CPU; this benchmark does not). "As documented" means the
64 rows per step of config/train_shakespeare_char.py (6 x 384, T 256), without dropout, as in ours. The other nanoGPT
cases use our rows, which suit a CPU better. Ours trains in the precision that is faster on this machine, and the
ceiling is that of the faster one.

nanochat: its gpt.py and its Muon, compiled as in base_train.py, full attention windows as in runcpu.sh, in fp32 (its
default on a CPU) and bf16. Its MLP has as many weights as ours; its value embeddings are additional.

transformers: Qwen3 or ModernBERT, in fp32 or with bf16 autocast as in Trainer, fused AdamW, clipping at 1, without the
overhead of Trainer. The masked-LM head reads all positions, as in run_mlm.py.

--clock cpu measures processor time, for a machine that others use too: set OMP_NUM_THREADS=1. On a CUDA GPU, if there
is one, the memory is that of tensors (not measured yet).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.measure import ROOT, CaseError, Comparison, how_it_ended, interleave, publish

if TYPE_CHECKING:
    import torch

CASES = {
    "ours, AdamW": {"kind": "ours", "optimizer": "adamw"},
    "ours, AdamW, compiled": {"kind": "ours", "optimizer": "adamw", "compile": True},
    "ours, Muon": {"kind": "ours", "optimizer": "muon"},
    "nanoGPT, as documented (1 x 64 rows)": {"kind": "nanogpt", "rows": 64, "accumulation": 1, "steps": 1},
    "nanoGPT, fp32": {"kind": "nanogpt"},
    "nanoGPT, fp32, compiled": {"kind": "nanogpt", "compile": True},
    "nanoGPT, bf16, compiled": {"kind": "nanogpt", "bf16": True, "compile": True},
    "nanochat, fp32, compiled": {"kind": "nanochat"},
    "nanochat, bf16, compiled": {"kind": "nanochat", "bf16": True},
    "transformers, fp32": {"kind": "transformers"},
    "transformers, bf16": {"kind": "transformers", "bf16": True},
}
GOALS = {
    "nanoGPT, as documented (1 x 64 rows)": 2.5,
    "nanoGPT, fp32": 2.5,
    "nanoGPT, fp32, compiled": 1.25,
    "nanoGPT, bf16, compiled": 1.25,
    "transformers, fp32": 1.5,
    "transformers, bf16": 1.5,
}
LESS_MEMORY = {"transformers, bf16": 0.6, "transformers, fp32": 0.6}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Preset: gpt or mlm.")] = "gpt",
    width: int = 384,
    layers: int = 6,
    length: int = 256,
    vocabulary: int = 4096,
    rows: Annotated[int, typer.Option(help="Rows of a micro-batch.")] = 8,
    accumulation: int = 2,
    checkpointing: Annotated[bool, typer.Option(help="Gradient checkpointing in every layer.")] = False,
    steps: Annotated[int, typer.Option(help="Steps per turn.")] = 3,
    rounds: int = 3,
    clock: Annotated[str, typer.Option(help="Clock: wall or cpu.")] = "wall",
    only: Annotated[str, typer.Option(help="Run cases that start with one of these, separated by semicolons.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for training.json.")] = None,
) -> None:
    """Print tokens/s and peak memory of every case and the ratios of ours to them."""
    shape = {
        **{"model": model, "width": width, "layers": layers, "length": length, "vocabulary": vocabulary},
        **{"rows": rows, "accumulation": accumulation, "checkpointing": checkpointing, "steps": steps},
    }
    wanted = [name for name in CASES if not only or name.startswith(tuple(only.split(";")))]
    absent = [kind for kind in ("nanogpt", "nanochat") if model == "mlm" or not os.environ.get(kind.upper())]
    wanted = [name for name in wanted if CASES[name]["kind"] not in absent]
    # nanoGPT documents these rows for this length only.
    wanted = [name for name in wanted if "rows" not in CASES[name] or length == 256]
    cases = {name: shape | CASES[name] for name in wanted}
    workers = {name: _Worker(case) for name, case in cases.items()}
    tokens = {name: length * case["rows"] * case["accumulation"] * case["steps"] for name, case in cases.items()}
    figures = interleave({n: lambda n=n: tokens[n] / workers[n].turn()[clock] for n in workers}, rounds)
    workers = {name: worker for name, worker in workers.items() if figures[name]}
    title = f"{model} {layers} x {width}, T {length}, V {vocabulary}, {accumulation} x {rows} rows"
    first = {name: worker.first for name, worker in workers.items()}
    peaks = {name: [worker.last["peak_mb"]] for name, worker in workers.items()}
    ceilings = [worker.last for worker in workers.values() if "flops" in worker.last]
    notes = {"seconds to the first step": first, "clock": clock}
    speed = Comparison(title, "tokens/s", figures, goals={k: v for k, v in GOALS.items() if k in figures}, notes=notes)
    goals = {name: goal for name, goal in LESS_MEMORY.items() if name in figures}
    memory = Comparison(f"{title}: peak memory", "MB", peaks, lower_is_better=True, goals=goals)
    # The ceiling is measured in wall time.
    if ceilings and clock == "wall":
        flops, ceiling = ceilings[0]["flops"], max(found["ceiling"] for found in ceilings)
        shares = {name: value * flops / ceiling for name, value in speed.medians.items()}
        notes["share of the ceiling"] = shares
    publish([speed, memory], "training", out)
    shares = notes.get("share of the ceiling", {})
    for name in workers:
        share = f", {shares[name]:.1%} of {ceiling / 1e9:,.0f} GFLOP/s" if shares else ""
        print(f"{name}: first step after {first[name]:.1f} s{share}")
    for worker in workers.values():
        worker.close()


class _Worker:
    """One case in its own process, which runs when asked and otherwise sleeps."""

    def __init__(self, case: dict) -> None:
        command = [sys.executable, "-m", "benchmarks.training", "worker", json.dumps(case)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        # The first turn is in the figures of no round. One that fails fails again in the first round.
        with suppress(CaseError):
            self.first = self.turn()["first"]
        self.last: dict = {}

    def turn(self) -> dict:
        with suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"wall"'):
                self.last = json.loads(line)
                return self.last
        raise CaseError(how_it_ended(self.process.wait()))

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


@app.command()
def worker(settings: str) -> None:
    """Internal: run one case. For each line of input, train some steps and print a line of JSON."""
    case = json.loads(settings)
    start = time.perf_counter()
    kinds = {"ours": _ours, "nanogpt": _nanogpt, "nanochat": _nanochat, "transformers": _transformers}
    step, more = kinds[case["kind"]](case)
    step()
    first = time.perf_counter() - start
    step()
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(case["steps"]):
            step()
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - processor, "first": first}
        print(json.dumps(found | {"peak_mb": _peak()} | more()), flush=True)


def _ours(case: dict) -> tuple[Callable[[], None], Callable[[], dict]]:
    # Before torch: sets up OpenMP, as every command of ours does.
    import mini_llm  # noqa: F401

    # isort: split
    import torch

    from mini_llm.engine.config import build_config
    from mini_llm.engine.distributed.processes import make_accelerator, start_processes
    from mini_llm.engine.flops import flops_per_token, matmul_ceiling
    from mini_llm.engine.step import prepare, train_step
    from mini_llm.model import HEADS
    from pretrain.config import PretrainConfig
    from pretrain.plan.setup import MemorySetup
    from pretrain.plan.trial_steps import random_batch
    from pretrain.presets import build_config as build_model

    tree = {
        "model": case["model"],
        "budget": None,
        "micro_batch_size": case["rows"],
        "runtime": {"compile": case.get("compile", False), "gradient_checkpointing": int(case["checkpointing"])},
        "optim": {"name": case["optimizer"]},
    }
    config = build_config(PretrainConfig, tree, "benchmark")
    start_processes(config.runtime)
    accelerator = make_accelerator(config.runtime, case["accumulation"], case["rows"], config.optim.max_grad_norm)
    shape = build_model(case["model"], _sizes(case))
    labels = case["length"] if shape.causal else round(0.3 * case["length"])
    setup = MemorySetup(case["rows"], case["length"], labels, accumulation=case["accumulation"])
    torch.manual_seed(0)
    training = prepare(HEADS["causal" if shape.causal else "masked"](shape), config, accelerator)

    def step() -> None:
        batches = [random_batch(shape, setup) for _ in range(case["accumulation"])]
        train_step(training, batches, 1.0, config.optim.max_grad_norm)

    def more() -> dict:
        flops = flops_per_token(shape, case["length"], labels / case["length"])
        ceilings = [matmul_ceiling(accelerator.device, dtype) for dtype in (torch.float32, torch.bfloat16)]
        return {"flops": flops, "ceiling": max(ceilings)}

    return step, more


def _sizes(case: dict) -> dict[str, int]:
    """The sizes of a case, with the names used by our configuration and by Hugging Face."""
    return {
        "vocab_size": case["vocabulary"],
        "hidden_size": case["width"],
        "num_hidden_layers": case["layers"],
        "num_attention_heads": case["width"] // 64,
        "max_position_embeddings": case["length"],
    }


def _nanogpt(case: dict) -> tuple[Callable[[], None], Callable[[], dict]]:
    import torch

    device = _device()
    sys.path.insert(0, os.environ["NANOGPT"])
    from model import GPT, GPTConfig  # nanoGPT's model.py

    torch.manual_seed(0)
    sizes = {"n_layer": case["layers"], "n_head": case["width"] // 64, "n_embd": case["width"]}
    peer = GPT(GPTConfig(case["length"], case["vocabulary"], **sizes, dropout=0.0, bias=False))
    peer.to(device)
    optimizer = peer.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type)
    peer = torch.compile(peer) if case.get("compile") else peer
    return _plain_step(case, peer, optimizer, lambda ids: peer(ids[:, :-1], ids[:, 1:].contiguous())[1]), dict


def _nanochat(case: dict) -> tuple[Callable[[], None], Callable[[], dict]]:
    os.environ["NANOCHAT_DTYPE"] = "bfloat16" if case.get("bf16") else "float32"
    import torch

    device = _device()
    sys.path.insert(0, os.environ["NANOCHAT"])
    from nanochat.gpt import GPT, GPTConfig

    torch.manual_seed(0)
    heads = {"n_head": case["width"] // 64, "n_kv_head": case["width"] // 64}
    sizes = {"n_layer": case["layers"], "n_embd": case["width"], **heads, "window_pattern": "L"}
    peer = GPT(GPTConfig(case["length"], case["vocabulary"], **sizes))
    peer.to(device).init_weights()
    optimizer = peer.setup_optimizer()
    peer = torch.compile(peer, dynamic=False)

    def step() -> None:
        for _ in range(case["accumulation"]):
            ids = torch.randint(case["vocabulary"], (case["rows"], case["length"] + 1), device=device)
            loss = peer(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            (loss / case["accumulation"]).backward()
        optimizer.step()
        peer.zero_grad(set_to_none=True)
        loss.item()

    return step, dict


def _transformers(case: dict) -> tuple[Callable[[], None], Callable[[], dict]]:
    import torch
    from transformers import ModernBertConfig, ModernBertForMaskedLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = _sizes(case)
    inner = -(-case["width"] * 8 // 3 // 64) * 64
    if case["model"] == "gpt":
        more = {"num_key_value_heads": case["width"] // 64, "head_dim": 64, "tie_word_embeddings": True}
        peer = Qwen3ForCausalLM(Qwen3Config(**sizes, **more, intermediate_size=inner, use_cache=False))
    else:
        ids = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        peer = ModernBertForMaskedLM(
            ModernBertConfig(**sizes, **ids, intermediate_size=inner, global_attn_every_n_layers=1)
        )
    if case["checkpointing"]:
        peer.gradient_checkpointing_enable({"use_reentrant": False})
    peer.to(_device()).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, fused=True)

    def loss(ids: torch.Tensor) -> torch.Tensor:
        ids = ids[:, :-1]
        if case["model"] == "gpt":
            return peer(input_ids=ids, labels=ids).loss
        labels = torch.where(torch.rand(ids.shape, device=ids.device) < 0.3, ids, -100)
        return peer(input_ids=ids, labels=labels).loss

    return _plain_step(case, peer, optimizer, loss), dict


def _plain_step(case: dict, peer: object, optimizer: object, loss_of: Callable) -> Callable[[], None]:
    """The training step of nanoGPT's train.py and of Trainer: mean loss over micro-batches, clipping, AdamW."""
    import torch

    device = _device()
    context = torch.autocast(device.type, torch.bfloat16) if case.get("bf16") else nullcontext()

    def step() -> None:
        for _ in range(case["accumulation"]):
            ids = torch.randint(case["vocabulary"], (case["rows"], case["length"] + 1), device=device)
            with context:
                loss = loss_of(ids) / case["accumulation"]
            loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def _device() -> "torch.device":
    """The device that our runs use."""
    from mini_llm.engine.device import default_device

    return default_device()


def _peak() -> float:
    """Peak memory in MB: of tensors on a GPU, otherwise the resident memory of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


if __name__ == "__main__":
    app()
