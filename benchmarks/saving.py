"""What saving costs: the share of training time at the default interval, written behind the training or at once.

    python -m benchmarks.saving

Trains a decoder in two runs of equal steps that take turns: one saves every SAVE_EVERY steps, one never. The extra
time per save, divided by the default interval of 60 s, is the share. "at once" waits for every save, as a saver
without a thread does.
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
    hidden_size: Annotated[int, typer.Option(help="Width; 64 a head.")] = 384,
    layers: Annotated[int, typer.Option(help="Blocks.")] = 6,
    vocab_size: Annotated[int, typer.Option(help="Pieces.")] = 8192,
    rows: Annotated[int, typer.Option(help="Sequences of 256 tokens a step.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of a stretch; one save in each stretch that saves.")] = 8,
    rounds: Annotated[int, typer.Option(help="Stretches of each kind, of which the median counts.")] = 5,
) -> None:
    """Print seconds a save costs, and its share of the default interval, behind the training and at once."""
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

    def stretch(saver: Saver | None, at_once: bool) -> float:
        nonlocal count
        started = time.perf_counter()
        for i in range(steps):
            count += 1
            train_step(training, [dict(batch)], 1e-3, 1.0)
            if saver is not None and i == 0:
                saver.save({"step": count})
                if at_once:
                    saver.finish()
        if saver is not None:
            saver.finish()
        return time.perf_counter() - started

    stretch(None, False)
    with tempfile.TemporaryDirectory() as name, Saver(Path(name), training, lambda _: None, 2, {}) as saver:
        stretch(saver, True)
        size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file()) / 1e6
        seconds: dict[str, list[float]] = {"no save": [], "behind": [], "at once": []}
        for _ in range(rounds):
            seconds["no save"].append(stretch(None, False))
            seconds["behind"].append(stretch(saver, False))
            seconds["at once"].append(stretch(saver, True))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    plain = statistics.median(seconds["no save"])
    print(f"{parameters:.1f} M parameters, checkpoint {size:.0f} MB, step {plain / steps:.2f} s")
    print(f"{'':9} {'s a save':>9} {'share of ' + format(SECONDS_BETWEEN_SAVES, '.0f') + ' s':>15}")
    for kind in ("behind", "at once"):
        # Stretches of one round follow each other: the machine is as busy for both.
        extra = statistics.median(b - a for a, b in zip(seconds["no save"], seconds[kind], strict=True))
        print(f"{kind:9} {extra:9.2f} {extra / SECONDS_BETWEEN_SAVES:15.1%}")


if __name__ == "__main__":
    app()
