"""Cost of saving: its share of the training time at the default save interval, in the background or synchronous.

    python -m benchmarks.saving

Trains a decoder in stretches of equally many steps that take turns: without a save, with one save in the background,
and with one save that training waits for ("synchronous", as with a saver without a thread). The share is the extra
time per save divided by the default interval of 60 s.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from mini_llm.engine.budget import SECONDS_BETWEEN_SAVES
from mini_llm.engine.checkpoint.saver import Saver
from mini_llm.engine.distributed.processes import make_accelerator, start_processes
from mini_llm.engine.settings import LoopConfig, RuntimeConfig
from mini_llm.engine.step import prepare, train_step
from mini_llm.model import CausalLM
from pretrain.presets import build_config

app = typer.Typer(add_completion=False)


@app.command()
def shares(
    hidden_size: Annotated[int, typer.Option(help="Width; each head has 64 channels.")] = 384,
    layers: Annotated[int, typer.Option(help="Number of layers.")] = 6,
    vocab_size: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = 8192,
    rows: Annotated[int, typer.Option(help="Sequences of 256 tokens per step.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps per stretch.")] = 8,
    rounds: Annotated[int, typer.Option(help="Stretches of each kind; the median counts.")] = 5,
) -> None:
    """Print the seconds that a save costs and their share of the default interval, in both modes."""
    runtime = RuntimeConfig(device="cpu")
    start_processes(runtime)
    accelerator = make_accelerator(runtime, 1, rows, 1.0)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 64,
        "max_position_embeddings": 256,
    }
    model = CausalLM(build_config("gpt", sizes))
    training = prepare(model, LoopConfig(runtime=runtime), accelerator)
    ids = torch.randint(vocab_size, (rows, 257))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:].clone()}
    count = 0

    def stretch(saver: Saver | None, synchronous: bool) -> float:
        nonlocal count
        started = time.perf_counter()
        for i in range(steps):
            count += 1
            train_step(training, [dict(batch)], 1e-3, 1.0)
            if saver is not None and i == 0:
                saver.save({"step": count})
                if synchronous:
                    saver.finish()
        if saver is not None:
            saver.finish()
        return time.perf_counter() - started

    stretch(None, False)
    with tempfile.TemporaryDirectory() as name, Saver(Path(name), training, lambda _: None, 2, {}) as saver:
        stretch(saver, True)
        size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file()) / 1e6
        seconds: dict[str, list[float]] = {"no save": [], "background": [], "synchronous": []}
        for _ in range(rounds):
            seconds["no save"].append(stretch(None, False))
            seconds["background"].append(stretch(saver, False))
            seconds["synchronous"].append(stretch(saver, True))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    plain = statistics.median(seconds["no save"])
    print(f"{parameters:.1f} M parameters, checkpoint {size:.0f} MB, step {plain / steps:.2f} s")
    print(f"{'':11} {'s per save':>10} {'share of ' + format(SECONDS_BETWEEN_SAVES, '.0f') + ' s':>15}")
    for kind in ("background", "synchronous"):
        # Compare stretches of the same round: the machine is equally busy for both.
        extra = statistics.median(b - a for a, b in zip(seconds["no save"], seconds[kind], strict=True))
        print(f"{kind:11} {extra:10.2f} {extra / SECONDS_BETWEEN_SAVES:15.1%}")


if __name__ == "__main__":
    app()
