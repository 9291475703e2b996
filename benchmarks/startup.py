"""Seconds from the start of a process to its first token and to its first training step.

    python -m benchmarks.startup --out results

Files are in the page cache; tokenizer and token store exist. Training runs without torch.compile. For the first token
the peer is a five-line script with `transformers`. To see where the time goes: python -X importtime -m generate ...
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure import ROOT, CaseError, Comparison, how_it_ended, interleave, publish

TRANSFORMERS = """
import sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print("FIRST", model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=1, do_sample=False))
"""

app = typer.Typer(add_completion=False)


@app.command()
def main(repeats: int = 3, out: Annotated[Path | None, typer.Option(help="Folder for startup.json.")] = None) -> None:
    """Print the seconds; with --out, write startup.json."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        text = "".join(path.read_text() for path in sorted(ROOT.glob("*/*.py")))
        (folder / "text.txt").write_text(text)
        train = ["-m", "pretrain", "--data", "text.txt", "budget=null", "vocab_size=1024", "max_steps=2"]
        # The cases below use the tokenizer, token store and model of this run.
        subprocess.run(
            [sys.executable, *train, "run=made"], cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL
        )
        model = "runs/made/model"
        generate = ["-m", "generate", model, "def ", "--max-new-tokens", "200", "--temperature", "0"]
        count = iter(range(10**6))
        first_token = {
            "ours": lambda: until(folder, generate, b""),
            "ours, --no-compile": lambda: until(folder, [*generate, "--no-compile"], b""),
            "transformers": lambda: until(folder, ["-c", TRANSFORMERS, model], b"FIRST"),
        }
        first_step = {"ours": lambda: until(folder, [*train, "max_steps=50", f"run=run{next(count)}"], b"step 1/")}
        comparisons = [
            Comparison("first token", "s", interleave(first_token, repeats), lower_is_better=True),
            Comparison("first training step", "s", interleave(first_step, repeats), lower_is_better=True),
        ]
    publish(comparisons, "startup", out)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def until(folder: Path, arguments: list[str], sign: bytes) -> float:
    """Seconds from the start of a Python process until it prints `sign` (if empty: anything on standard output)."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        # A training run reports its steps on standard error.
        stderr=subprocess.STDOUT if sign else subprocess.DEVNULL,
    )
    seen = b""
    while output := os.read(process.stdout.fileno(), 4096):
        seen += output
        if sign in seen:
            elapsed = time.perf_counter() - start
            process.kill()
            process.communicate()
            return elapsed
    print(seen.decode(), file=sys.stderr)
    raise CaseError(f"{how_it_ended(process.wait())}, without printing {sign!r}")


if __name__ == "__main__":
    app()
