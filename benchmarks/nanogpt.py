"""nanoGPT (github.com/karpathy/nanoGPT) as a peer: runs a copy of a checkout, unmodified, and evaluates its model.

On a CPU nanoGPT ignores --dtype, so `bf16` runs train.py inside torch.autocast. Its own validation loss is an estimate
from random windows; `nats` evaluates its model on the whole file, in consecutive windows of its context length.
"""

import pickle
import re
import runpy
import shlex
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from benchmarks.measure import output_of
from benchmarks.runs import environment

PROBE_ITERATIONS = 60

# README, "baby networks" on a CPU.
CPU_RECIPE = shlex.split(
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class NanoGPT:
    """A copy of a checkout in `folder`. Exits if `checkout` has no train.py."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        if not (checkout / "train.py").is_file():
            sys.exit(f"{checkout}: contains no train.py; pass a checkout of nanoGPT (NANOGPT=PATH or --nanogpt PATH)")
        self.path = folder / "nanoGPT"
        shutil.copytree(checkout, self.path, ignore=shutil.ignore_patterns(".git"), dirs_exist_ok=True)

    def write_ids(self, dataset: str, train: np.ndarray, validation: np.ndarray) -> None:
        """Write train.bin and val.bin of a data set of ids, as nanoGPT's prepare.py scripts do."""
        folder = self.path / "data" / dataset
        folder.mkdir(parents=True, exist_ok=True)
        for name, ids in (("train", train), ("val", validation)):
            ids.astype(np.uint16).tofile(folder / f"{name}.bin")

    def write_vocabulary(self, dataset: str, size: int) -> None:
        """Write meta.pkl, from which train.py reads the size of the vocabulary."""
        with (self.path / "data" / dataset / "meta.pkl").open("wb") as file:
            pickle.dump({"vocab_size": size}, file)

    def prepare_characters(self, text: Path) -> float:
        """Run data/shakespeare_char/prepare.py on `text`; returns its seconds."""
        folder = self.path / "data" / "shakespeare_char"
        shutil.copyfile(text, folder / "input.txt")
        start = time.perf_counter()
        self._run([sys.executable, str(folder / "prepare.py")])
        return time.perf_counter() - start

    def train(self, arguments: list[str], bf16: bool = False) -> tuple[float, str]:
        """Run train.py; returns (wall time in seconds, output)."""
        start = time.perf_counter()
        printed = self._run(self._module("train", str(int(bf16)), *arguments) if bf16 else ["train.py", *arguments])
        return time.perf_counter() - start, printed

    def train_for(self, seconds: float, arguments: list[str], bf16: bool = False) -> float:
        """Train for about `seconds` of wall time, estimated from a short run; returns the wall time."""
        probe = [f"--max_iters={PROBE_ITERATIONS}", f"--eval_interval={PROBE_ITERATIONS}", "--log_interval=1"]
        for _ in range(2):  # the first run fills the compiler's cache
            wall, printed = self.train([*arguments, *probe, "--always_save_checkpoint=True"], bf16)
        times = [float(ms) / 1000 for ms in re.findall(r"^iter \d+: loss .*, time ([0-9.]+)ms", printed, re.MULTILINE)]
        step = median(times[2:-1])
        count = max(int((seconds - (wall - step * len(times))) / step), PROBE_ITERATIONS)
        lengths = [f"--max_iters={count}", f"--lr_decay_iters={count}", f"--eval_interval={count}"]
        return self.train([*arguments, *lengths, "--log_interval=100", "--always_save_checkpoint=True"], bf16)[0]

    def nats(self, dataset: str, out_dir: str) -> float:
        """Total nats of val.bin under the checkpoint in `out_dir`."""
        printed = self._run(self._module("evaluate", str(self.path / "data" / dataset / "val.bin"), out_dir))
        return float(printed.split()[-1])

    def _module(self, *arguments: str) -> list[str]:
        return ["-m", "benchmarks.nanogpt", *arguments]

    def _run(self, arguments: list[str]) -> str:
        command = arguments if arguments[0] == sys.executable else [sys.executable, *arguments]
        return output_of(command, cwd=self.path, env=environment())


@app.command(context_settings={"ignore_unknown_options": True})
def train(bf16: int, arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Internal: run train.py of the current folder inside autocast."""
    import torch

    sys.path.insert(0, str(Path.cwd()))
    sys.argv = ["train.py", *(arguments or [])]
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        runpy.run_path("train.py", run_name="__main__")


@app.command()
def evaluate(ids: Path, out_dir: str) -> None:
    """Internal: print the total nats of all ids except the first under nanoGPT's own model class, in fp32."""
    import torch

    from mini_llm.engine.device import default_device

    sys.path.insert(0, str(Path.cwd()))
    from model import GPT, GPTConfig  # nanoGPT's model.py

    device = default_device()
    checkpoint = torch.load(Path(out_dir) / "ckpt.pt", map_location=device, weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"])).to(device)
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in checkpoint["model"].items()})
    model.eval()
    tokens = torch.from_numpy(np.fromfile(ids, np.uint16).astype(np.int64)).to(device)
    length, total = model.config.block_size, 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16 * length):
            inputs, labels = tokens[start : start + 16 * length], tokens[start + 1 : start + 16 * length + 1]
            inputs = inputs[: len(labels)]
            whole = len(labels) // length * length
            for x, y in (
                (inputs[:whole].view(-1, length), labels[:whole].view(-1, length)),
                _rest(inputs, labels, whole),
            ):
                if x.numel():
                    total += model(x, y)[1].item() * y.numel()
    print(total)


def _rest(inputs, labels, whole: int):
    return inputs[None, whole:], labels[None, whole:]


if __name__ == "__main__":
    app()
