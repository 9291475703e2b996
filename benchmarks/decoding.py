"""Greedy decoding at batch size 1 against transformers.generate and llama.cpp, with 7 M and 110 M parameters.

    python -m benchmarks.decoding --llama-python /tmp/llama/bin/python --out results

The weights are random (speed does not depend on them) and the prompt has 16 tokens. Each case runs in its own process;
cases take turns. llama.cpp reads the same model, exported to GGUF; its Python needs llama-cpp-python, numpy and typer.
With `--model RUN --text FILE` it prints the bits per token of a trained model in fp32, bf16 and int8, and how much its
logits change; with `--lookup N` besides, the speed of texts with and without prompt lookup in turns. `--old CHECKOUT`
measures several texts at once beside another checkout of this repository.
"""

import json
import math
import os
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.measure import ROOT, Comparison, interleave, output_of, publish, seconds
from generate.config import GenerateConfig
from generate.load import load_generator
from mini_llm.engine.kernels.decode import round_to_int8
from mini_llm.export.write import export_gguf
from mini_llm.model import CausalLM, ModelConfig, load_model, save_model
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer
from tokenizer.sample import draw_sample
from tokenizer.train import train_model

SIZES = {
    "7 M": {"vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4},
    "110 M": {"vocab_size": 32000, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
BYTES = {"fp32": 4, "bf16": 2, "int8": 1 + 4 / 64}
GGUF = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0"}
PROMPT = list(range(100, 116))

app = typer.Typer(add_completion=False)


@app.command()
def main(
    llama_python: Annotated[
        str | None, typer.Option(help="Python that can import llama_cpp; default: this one, if it can.")
    ] = None,
    repeats: int = 3,
    tokens: int = 128,
    threads: int = torch.get_num_threads(),
    old: Annotated[
        Path | None, typer.Option(help="Another checkout: compare 1, 4 and 16 texts at once with it, and no peers.")
    ] = None,
    out: Path | None = None,
    model: Annotated[Path | None, typer.Option(help="Trained model to measure the quality of bf16 and int8.")] = None,
    text: Annotated[Path | None, typer.Option(help="Held-out text for --model.")] = None,
    lookup: Annotated[int, typer.Option(help="With --model: most tokens to guess by prompt lookup.")] = 0,
) -> None:
    """Print the tables; with --out, write decoding.json."""
    if model and text and lookup:
        torch.set_num_threads(threads)
        publish(compare_lookup(model, text, lookup, repeats, tokens), "lookup", out)
        return
    if model and text:
        quality(model, text)
        return
    if llama_python is None and find_spec("llama_cpp"):
        llama_python = sys.executable
    torch.set_num_threads(threads)
    bandwidth = memory_bandwidth()
    print(f"memory bandwidth (read): {bandwidth / 1e9:.1f} GB/s", file=sys.stderr)
    comparisons = []
    with tempfile.TemporaryDirectory() as scratch:
        for size, shape in SIZES.items():
            directory = Path(scratch) / size.replace(" ", "")
            parameters = make_model(directory, shape)
            if old:
                comparisons += compare_checkouts(size, directory, old.resolve(), repeats, tokens, threads)
                continue
            comparisons += compare(size, directory, parameters, llama_python, repeats, tokens, threads, bandwidth)
    publish(comparisons, "decoding", out)


def compare(
    size: str,
    directory: Path,
    parameters: int,
    llama_python: str | None,
    repeats: int,
    tokens: int,
    threads: int,
    bandwidth: float,
) -> list[Comparison]:
    """One comparison for each data type of the weights."""
    made: dict[str, list[int]] = {}
    cases, goals = {}, {}

    def case(name: str, program: str, path: Path, kind: str) -> None:
        python = llama_python if program.startswith("llama.cpp") else sys.executable
        command = [python, "-m", "benchmarks.decoding_case", program, path, kind, json.dumps(PROMPT), tokens, threads]

        def run() -> float:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            figures = json.loads(output_of(command, cwd=ROOT, env=environment).splitlines()[-1])
            made[name] = figures["ids"]
            return figures["tokens_per_second"]

        cases[name] = run

    for kind in BYTES:
        case(f"ours {kind}", "ours", directory, kind)
        if kind != "int8":
            case(f"ours {kind}, --no-compile", "model", directory, kind)
            case(f"transformers {kind}", "transformers", directory, kind)
        if llama_python:
            file = directory / f"{kind}.gguf"
            export_gguf(directory, file, GGUF[kind])
            case(f"llama.cpp {GGUF[kind]}", "llama.cpp", file, kind)
            case(f"llama.cpp {GGUF[kind]}, 16 texts", "llama.cpp batch", file, kind)
        case(f"ours {kind}, 16 texts", "batch", directory, kind)
    figures = interleave(cases, repeats)
    results = []
    for kind in BYTES:
        ours = f"ours {kind}"
        peers = [f"transformers {k}" for k in ("fp32", "bf16")] + [f"llama.cpp {GGUF[kind]}"] * bool(llama_python)
        names = [ours, *peers, *(name for name in figures if name.startswith((f"{ours},", f"{peers[-1]},")))]
        goals = {f"llama.cpp {GGUF[kind]}": 0.7} if llama_python and size == "110 M" and kind != "fp32" else {}
        if size == "110 M" and kind == "bf16":
            goals["transformers bf16"] = 3
        elif size == "7 M":
            goals |= {"transformers fp32": 8, "transformers bf16": 8}
        comparison = Comparison(f"{size}, {kind}", "tokens/s", {name: figures[name] for name in names}, goals=goals)
        speed = comparison.medians.get(ours, math.nan)
        alone = [name for name in names[1:] if "16 texts" not in name and name in made]
        comparison.notes = {
            "share of memory bandwidth": speed * parameters * BYTES[kind] / bandwidth,
            "GB/s": bandwidth / 1e9,
            "same ids as": [name for name in alone if made[name] == made.get(ours)],
        }
        print(f"{comparison.title}: {comparison.notes}", file=sys.stderr)
        results.append(comparison)
    return results


def compare_checkouts(
    size: str, directory: Path, old: Path, repeats: int, tokens: int, threads: int
) -> list[Comparison]:
    """Tokens per second of CPU time, which other processes change less than the time on the clock: set --threads 1."""
    results = []
    for kind in ("bf16", "int8"):
        cases = {}
        for rows in (1, 4, 16):
            for name, checkout in (("ours", ROOT), ("old", old)):
                # The other checkout's code is measured by this one's script.
                script = ["-P", ROOT / "benchmarks" / "decoding_case.py", "batch", directory, kind]
                command = [sys.executable, *script, json.dumps(PROMPT), tokens, threads, rows]
                environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(checkout)}
                cases[f"{name}, {rows} texts"] = partial(cpu_speed, command, checkout, environment)
        figures = interleave(cases, repeats)
        for rows in (1, 4, 16):
            pair = {name: figures[name] for name in (f"ours, {rows} texts", f"old, {rows} texts")}
            results.append(Comparison(f"{size}, {kind}", "tokens per CPU second", pair))
    return results


def cpu_speed(command: list, checkout: Path, environment: dict[str, str]) -> float:
    return json.loads(output_of(command, cwd=checkout, env=environment).splitlines()[-1])["tokens_per_cpu_second"]


def make_model(directory: Path, shape: dict[str, int]) -> int:
    """Write a random model with a small tokenizer; returns the number of parameters, all of which a token reads."""
    directory.mkdir()
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    model = CausalLM(ModelConfig(causal=True, max_position_embeddings=512, init="normal", **shape, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    sample = draw_sample([(ROOT / "README.md").read_text()], 1_000_000, 0)
    model_proto = train_model(TokenizerConfig(vocab_size=512), sample)
    save_model(model, directory)
    save_tokenizer(Tokenizer(model_proto, directory), directory, "causal")
    return sum(parameter.numel() for parameter in model.parameters())


def memory_bandwidth() -> float:
    """Bytes/s when all threads read 512 MB, best of 8."""
    block = torch.ones(128 * 2**20)
    return block.nbytes / min(seconds(block.sum) for _ in range(8))


def compare_lookup(path: Path, text: Path, most: int, repeats: int, tokens: int) -> list[Comparison]:
    """Texts with up to `most` guessed tokens beside those without, which are the same, after four beginnings in `text`.

    Counts the CPU time of one process, which other processes change less than the time on the clock: set --threads 1.
    """
    content, settings = text.read_text(encoding="utf-8"), {"greedy": {"temperature": 0}, "temperature 0.8": {}}
    prompts = [content[start:][:200] for start in range(0, len(content), len(content) // 4 + 1)]
    results = []
    for kind in ("compiled step", "--no-compile"):
        generator = load_generator(path, GenerateConfig(), "cpu", compiled=kind == "compiled step")

        def speed(count: int, changes: dict[str, float], made: dict[int, list[int]], generator=generator) -> float:
            generator.configure(GenerateConfig(max_new_tokens=tokens, lookup=count, **changes))
            samples = [generator.sample(prompt) for prompt in prompts]
            start = time.process_time()
            for sample in samples:
                for _ in generator.stream(sample):
                    pass
            spent, ids = time.process_time() - start, [token for sample in samples for token in sample.ids]
            assert made.setdefault(0, ids) == ids, "lookup has changed a text"
            return len(ids) / spent

        for name, changes in settings.items():
            made: dict[int, list[int]] = {}
            counts = [0, *(n for n in (1, 3, 7, 15) if n <= most)]
            cases = {f"--lookup {n}": partial(speed, n, changes, made) for n in counts}
            title = f"{name}, {kind}"
            results.append(Comparison(title, "tokens per CPU second", interleave(cases, repeats, say=False)))
    return results


@torch.inference_mode()
def quality(path: Path, text: Path) -> None:
    """For each data type of the weights, print the bits per token of `text` and how much the logits change."""
    directory = path / "model" if (path / "model").is_dir() else path
    exact = load_model(directory, head="causal")
    length = min(512, exact.config.max_position_embeddings)
    ids = load_tokenizer(directory).encode(text.read_text(encoding="utf-8"))[: 40 * length]
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    reference = None
    for kind in BYTES:
        model = load_model(directory, head="causal")
        if kind == "int8":
            round_to_int8(model)
        model = model.to(torch.bfloat16 if kind == "bf16" else torch.float32)
        total, largest, norms = 0.0, 0.0, [0.0, 0.0]
        for row in rows:
            logits, expected = model(row[None])[0].float(), exact(row[None])[0]
            total += torch.nn.functional.cross_entropy(logits[:-1], row[1:], reduction="sum").item()
            largest = max(largest, (logits - expected).abs().max().item())
            norms = [norms[0] + (logits - expected).square().sum().item(), norms[1] + expected.square().sum().item()]
        bits = total / math.log(2) / (rows.numel() - len(rows))
        reference = reference or bits
        print(
            f"{kind}: {bits:.5f} bits per token ({bits / reference - 1:+.4%}), perplexity {2**bits:.4f}; "
            f"logits change by {math.sqrt(norms[0] / norms[1]):.4%} of their norm, at most {largest:.4f}"
        )


if __name__ == "__main__":
    app()
