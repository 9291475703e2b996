"""Bits per byte of a GPT on tinyshakespeare within a budget, beside nanoGPT's documented recipes.

    python -m benchmarks.shakespeare input.txt --budget 2m

The validation bytes are nanoGPT's: the last tenth of the characters. nanoGPT's README: 1.88 nats a character with its
CPU recipe (2.739 bits per byte over the whole validation text, 132 s on the machine of RESULTS.md), 1.4697 with its
GPU recipe (2.120; three minutes on an A100).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

PEERS = {"nanoGPT, CPU recipe": 2.739, "nanoGPT, A100 recipe": 2.120}


def main(
    text: Annotated[Path, typer.Argument(help="tinyshakespeare's input.txt")],
    budget: Annotated[str, typer.Option(help="wall time of training")] = "2m",
    settings: Annotated[list[str] | None, typer.Argument(help="key=value for the run")] = None,
) -> None:
    """Tokenizer, encoding, training and evaluation from nothing, in a folder of their own."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pretrain",
            "--data",
            str(text.resolve()),
            "--budget",
            budget,
            "run=shakespeare",
        ]
        start = time.perf_counter()
        subprocess.run([*command, *(settings or [])], cwd=folder, env=environment(root), check=True)
        seconds = time.perf_counter() - start
        scores = json.loads((Path(folder) / "runs/shakespeare/summary.json").read_text())
    bits = scores["val/bpb"]
    print(f"\n{bits:.4f} bits per byte after {seconds:.0f} s, process start to saved model, {budget} of training")
    for peer, value in PEERS.items():
        print(f"  {bits / value:.3f} of {peer} ({value})")


def environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(root), "WANDB_MODE": os.environ.get("WANDB_MODE", "disabled")}


if __name__ == "__main__":
    typer.run(main)
