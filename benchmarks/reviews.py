"""A GPT trained on film reviews for equally many seconds: ours, nanoGPT (with our tokens), `transformers` Trainer.

    python -m benchmarks.reviews --data data/ --seconds 300 --nanogpt ~/nanoGPT

Prints the bits per byte of the last 1,000 reviews of imdb/unsup. For ours the seconds include everything: tokenizer,
encoding, training, evaluation, saving. The peers receive our token ids and have all seconds for their training process.
nanoGPT runs with torch.compile and bf16 autocast. Of --nanogpt-settings and of --trainer-settings the best one counts.
Everything runs on a CUDA GPU if there is one (not measured yet). For models of 124 M parameters after 8 minutes:

    python -m benchmarks.reviews --data data/ --seconds 480 --nanogpt ~/nanoGPT
        --nanogpt-settings "n_layer=12 n_head=12 n_embd=768 block_size=1024 batch_size=32 learning_rate=6e-4"
        --trainer-settings "layers=12 heads=12 width=768 length=1024 batch=32 lr=6e-4"
"""

import gzip
import json
import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.measure import Comparison, interleave, output_of, publish
from benchmarks.nanogpt import NanoGPT
from benchmarks.runs import budget_for, environment, pretrain
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer

HELD_OUT = 1000
GOAL = 0.9
NANOGPT = (
    "n_layer=4 n_head=3 n_embd=192 block_size=128 batch_size=8 learning_rate=2e-3",
    "n_layer=4 n_head=4 n_embd=256 block_size=128 batch_size=8 learning_rate=2e-3",
    "n_layer=4 n_head=2 n_embd=128 block_size=128 batch_size=8 learning_rate=4e-3",
    "n_layer=4 n_head=3 n_embd=192 block_size=128 batch_size=16 learning_rate=4e-3",
)
TRAINER = (
    "layers=4 heads=3 width=192 length=128 batch=8 lr=2e-3",
    "layers=4 heads=2 width=128 length=128 batch=8 lr=4e-3",
)


def main(
    data: Annotated[Path, typer.Option(help="Folder with imdb/unsup.jsonl.gz.")] = Path("data"),
    seconds: float = 300,
    nanogpt: Annotated[Path | None, typer.Option(envvar="NANOGPT", help="Checkout of nanoGPT.")] = None,
    nanogpt_settings: Annotated[list[str] | None, typer.Option(help="Options of nanoGPT; repeatable.")] = None,
    trainer_settings: Annotated[list[str] | None, typer.Option(help="Settings of Trainer; repeatable.")] = None,
    compile: Annotated[bool, typer.Option(help="Use torch.compile in nanoGPT.")] = True,
    repeats: Annotated[int, typer.Option(help="Runs of ours; the peers run each setting once.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value settings of our runs.")] = None,
) -> None:
    """Print the bits per byte of ours and of each peer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, held_out = split(data / "imdb" / "unsup.jsonl.gz", folder)
        size = sum(len(text.encode()) for text in held_out)
        bits = {"ours": []}
        for i in range(repeats):
            place = folder / f"ours-{i}"
            bits["ours"].append(ours(place, folder, seconds, size, settings or []))
        tokenizer = load_tokenizer(next((folder / "ours-0" / "runs").glob("*/tokenizer.model")).parent)
        ids = [join(tokenizer, texts) for texts in (train, held_out)]
        found: dict[str, dict[str, list[float]]] = {}
        if nanogpt:
            from mini_llm.engine.device import default_device

            peer = NanoGPT(nanogpt, folder)
            device = default_device().type
            common = [*REVIEWS, f"--device={device}", f"--compile={compile}"]
            peer.write_ids("reviews", *ids)
            # Without meta.pkl nanoGPT uses a vocabulary of 50,304 tokens.
            peer.write_vocabulary("reviews", tokenizer.vocab_size)

            def with_nanogpt(line: str) -> float:
                options = [f"--{word}" for word in line.split()]
                # On a GPU nanoGPT uses bf16 by default.
                wall = peer.train_for(seconds, [*common, *options], bf16=device == "cpu")
                say(f"nanoGPT, {line}: {wall:.0f} s")
                return peer.nats("reviews", "out-reviews") / math.log(2) / size

            lines = nanogpt_settings or NANOGPT
            found["nanoGPT"] = interleave({line: partial(with_nanogpt, line) for line in lines}, 1)

        def with_trainer(line: str) -> float:
            wall, nats = trainer(folder, ids, seconds, [*line.split(), f"vocabulary={tokenizer.vocab_size}"])
            say(f"transformers, {line}: {wall:.0f} s")
            return nats / math.log(2) / size

        lines = trainer_settings or TRAINER
        found["transformers"] = interleave({line: partial(with_trainer, line) for line in lines}, 1)
        bits |= {name: best(settings) for name, settings in found.items()}
        notes = {name: {line: next(iter(f), None) for line, f in settings.items()} for name, settings in found.items()}
        goals = {name: GOAL for name in bits if name != "ours"}
        title = f"reviews, bits per byte after {seconds:.0f} s"
        publish([Comparison(title, "bits", bits, True, goals, notes)], "reviews", out)


# nanoGPT's settings for small character models, with a shorter warm-up.
REVIEWS = (
    *("--dataset=reviews", "--out_dir=out-reviews", "--gradient_accumulation_steps=1", "--dropout=0.0"),
    *("--beta2=0.99", "--warmup_iters=100", "--min_lr=1e-4", "--eval_iters=1"),
)


def split(path: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Distinct training and validation reviews; also written to train.jsonl and validation.jsonl."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = list(dict.fromkeys(json.loads(line)["text"] for line in file))
    parts = texts[:-HELD_OUT], texts[-HELD_OUT:]
    for name, part in zip(("train", "validation"), parts, strict=True):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return parts


def ours(place: Path, folder: Path, seconds: float, size: int, settings: list[str]) -> float:
    """Bits per byte of a run that starts in an empty folder and takes `seconds` in all."""
    data = ["--data", str(folder / "train.jsonl"), f"corpus.validation={folder / 'validation.jsonl'}", *settings]
    (place / "probe").mkdir(parents=True)
    budget = budget_for(seconds, place / "probe", *data)
    run = pretrain(place, "reviews", "--budget", f"{budget:.1f}s", *data)
    if run.summary["validation_bytes"] != size:
        sys.exit(f"ours was scored on {run.summary['validation_bytes']:,} bytes, the peers on {size:,}")
    say(f"ours: {run.summary['val/bpb']:.4f} bits in {run.seconds:.0f} s, {budget:.0f} s of them for training")
    return run.summary["val/bpb"]


def join(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """The token ids of all texts, each followed by the end-of-sequence id: (n,) uint16."""
    end = np.array([tokenizer.eos_id])
    return np.concatenate([part for ids in tokenizer.encode_batch(texts) for part in (ids, end)]).astype(np.uint16)


def trainer(folder: Path, ids: list[np.ndarray], seconds: float, settings: list[str]) -> tuple[float, float]:
    """Run benchmarks.trainer; returns (seconds, total nats of the validation ids)."""
    for name, part in zip(("train", "val"), ids, strict=True):
        part.tofile(folder / f"{name}.bin")
    command = [sys.executable, "-m", "benchmarks.trainer", str(folder), str(seconds), *settings]
    wall, nats = output_of(command, env=environment()).split()[-2:]
    return float(wall), float(nats)


def best(settings: dict[str, list[float]]) -> list[float]:
    """The figures of the setting with the fewest bits; NoFigures if all have failed."""
    figures = list(settings.values())
    return min(filter(None, figures), default=figures[-1])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
