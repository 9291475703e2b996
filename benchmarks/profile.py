"""Time of a training step by kind of operation, and its share of the machine's matrix-product speed.

    python -m benchmarks.profile --width 384 --layers 6 --length 256 --vocabulary 4096
    python -m benchmarks.profile --model mlm --width 192 --optimizer adamw --compile

The step time is the median of --steps steps. The shares come from one more step under torch.profiler, which
overestimates small operations. A backward operation counts as the kind of its forward operation.
"""

import statistics
import time
from collections import defaultdict
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from mini_llm.engine import loss, step
from mini_llm.engine.config import build_config
from mini_llm.engine.device import DTYPES, resolve_precision
from mini_llm.engine.distributed.processes import make_accelerator, start_processes
from mini_llm.engine.flops import flops_per_token, measure_matmul
from mini_llm.engine.step import prepare, train_step
from mini_llm.model import HEADS, layers, operations, transformer
from pretrain.config import PretrainConfig
from pretrain.plan.setup import MemorySetup
from pretrain.plan.trial_steps import random_batch
from pretrain.presets import build_config as build_model

PREFIX = "kind: "
# Functions and the kind that their operations count as, except for the kinds in OPERATIONS.
LABELS = (
    (transformer.Transformer, "_embed", "embedding"),
    (transformer, "self_attention_mask", "positions and masks"),
    (transformer, "rotary_table", "positions and masks"),
    (layers.EncoderLayer, "forward", "residual"),
    (layers.DecoderLayer, "forward", "residual"),
    (operations, "rotate", "rotary"),
    (layers.MLP, "forward", "activation"),
    (loss, "loss_sums", "trunk"),
    (loss.FusedLinearCrossEntropy, "forward", "head and loss"),
    (loss.FusedLinearCrossEntropy, "backward", "head and loss"),
    (step, "_counts", "data"),
)
OPERATIONS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"),
    "attention": ("mini_llm::attention", "aten::_scaled_dot_product", "aten::_softmax", "aten::_safe_softmax"),
    "casts and copies": ("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous"),
    "gradient accumulation": ("torch::autograd::AccumulateGrad",),
    "fused kernels": ("graph_", "cpp_fused"),
}
# Everything inside these kinds counts as this kind, including matrix products.
CLOSED = ("head and loss", "optimizer: Muon", "optimizer: AdamW", "clipping")
OPTIMIZER = ((None, "_muon", "optimizer: Muon"), (None, "_adamw", "optimizer: AdamW"))


def main(
    model: Annotated[str, typer.Option(help="Preset: gpt, mlm, ...")] = "gpt",
    width: int = 384,
    layers: int = 6,
    length: int = 256,
    vocabulary: int = 4096,
    rows: Annotated[int, typer.Option(help="Rows of a micro-batch.")] = 4,
    accumulation: int = 2,
    optimizer: str = "muon",
    precision: str = "auto",
    compile: bool = False,
    checkpointing: int = 0,
    steps: int = 5,
) -> None:
    """Print the table, tokens per second and the share of the measured ceiling."""
    tree = {
        "model": model,
        "budget": None,
        "micro_batch_size": rows,
        "runtime": {"compile": compile, "precision": precision, "gradient_checkpointing": checkpointing},
        "optim": {"name": optimizer},
    }
    config = build_config(PretrainConfig, tree, "benchmark")
    start_processes(config.runtime)
    accelerator = make_accelerator(config.runtime, accumulation, rows, config.optim.max_grad_norm)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": length,
    }
    shape = build_model(model, sizes)
    labels = length if shape.causal else round(length * config.mlm_probability)
    setup = MemorySetup(rows, length, labels, accumulation=accumulation)
    if compile:
        torch._inductor.config.cpp.enable_kernel_profile = True
    torch.manual_seed(0)
    training = prepare(HEADS["causal" if shape.causal else "masked"](shape), config, accelerator)

    def one() -> float:
        batches = [random_batch(shape, setup) for _ in range(accumulation)]
        start = time.perf_counter()
        train_step(training, batches, 1.0, config.optim.max_grad_norm)
        return time.perf_counter() - start

    first = one()
    one()
    dtype = DTYPES[resolve_precision(config.runtime.precision, accelerator.device)]
    ceilings, times = [], []
    for _ in range(steps):
        ceilings.append(measure_matmul(accelerator.device, dtype))
        times.append(one())
    seconds, ceiling = statistics.median(times), statistics.median(ceilings)
    with _labelled(training), profile(activities=[ProfilerActivity.CPU]) as profiler:
        one()
    shares = by_kind(profiler.events())
    total = sum(shares.values())
    table = Table(title=f"{model} {layers} x {width}, T {length}, V {vocabulary}, {accumulation} x {rows} rows")
    for column in ("kind", "share", "ms"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, took in sorted(shares.items(), key=lambda item: -item[1]):
        table.add_row(kind, f"{took / total:.1%}", f"{1000 * seconds * took / total:,.1f}")
    Console().print(table)
    tokens = rows * length * accumulation
    flops = flops_per_token(shape, length, labels / length)
    print(f"first step {first:.1f} s; {1000 * seconds:,.0f} ms per step, {tokens / seconds:,.0f} tokens/s")
    print(f"{flops * tokens / seconds / ceiling:.1%} of {ceiling / 1e9:,.0f} GFLOP/s ({dtype}, measured between steps)")


class _labelled:
    """Context in which the functions of LABELS record their kind for the profiler."""

    def __init__(self, training: step.TrainContext) -> None:
        inner = training.optimizer
        while hasattr(inner, "optimizer"):
            inner = inner.optimizer
        self.places = [*LABELS, (step, "_clip", "clipping")]
        self.places += [(type(inner), name, kind) for _, name, kind in OPTIMIZER if hasattr(type(inner), name)]
        self.places += [
            (type(m), "forward", "norms")
            for m in {type(m): m for m in training.model.modules()}.values()
            if "Norm" in type(m).__name__
        ]

    def __enter__(self) -> None:
        self.kept = [(owner, name, owner.__dict__[name]) for owner, name, _ in self.places if name in owner.__dict__]
        for (owner, name, kept), (_, _, kind) in zip(
            self.kept, [place for place in self.places if place[1] in place[0].__dict__], strict=True
        ):
            function = kept.__func__ if isinstance(kept, staticmethod) else kept
            wrapped = _recording(function, kind)
            setattr(owner, name, staticmethod(wrapped) if isinstance(kept, staticmethod) else wrapped)

    def __exit__(self, *_: object) -> None:
        for owner, name, kept in self.kept:
            setattr(owner, name, kept)


def _recording(function: Any, kind: str) -> Any:
    def call(*arguments: Any, **keywords: Any) -> Any:
        with record_function(PREFIX + kind):
            return function(*arguments, **keywords)

    return call


def by_kind(events: list[Any]) -> dict[str, float]:
    """Microseconds by kind; each operation counts without the operations that it calls."""
    forward: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not _is_backward(event):
            label = _label(event)
            # The outermost operation created the autograd node; inner ones may carry its number too.
            forward.setdefault(event.sequence_nr, label or "other")
    found: dict[str, float] = defaultdict(float)
    for event in events:
        found[_kind(event, forward)] += event.self_cpu_time_total
    return dict(found)


def _ancestors(event: Any) -> Any:
    while event is not None:
        yield event
        event = event.cpu_parent


def _is_backward(event: Any) -> bool:
    return any("autograd::engine" in e.name or "Backward" in e.name for e in _ancestors(event))


def _label(event: Any) -> str | None:
    return next((e.name[len(PREFIX) :] for e in _ancestors(event) if e.name.startswith(PREFIX)), None)


def _kind(event: Any, forward: dict[int, str]) -> str:
    label = _label(event)
    if label in CLOSED:
        return label
    above = list(_ancestors(event))
    if label is None:
        numbers = [e.sequence_nr for e in above if e.sequence_nr >= 0 and "Backward" in e.name]
        label = next((forward[n] for n in numbers if n in forward), None)
    for e in above:
        for kind, names in OPERATIONS.items():
            if e.name.startswith(names) and not e.name.startswith(PREFIX):
                return kind
    if label is None and any(e.name.startswith("Optimizer") for e in above):
        return "optimizer: AdamW"
    return label or "other"


if __name__ == "__main__":
    typer.run(main)
