"""One case of benchmarks.decoding in its own process: tokens/s of a program that decodes greedily with MODEL.

    python -m benchmarks.decoding_case PROGRAM MODEL TYPE PROMPT_IDS TOKENS THREADS

PROGRAM is ours, batch (ours with sixteen texts), model (ours without the C++ step), transformers or llama.cpp. Prints a
JSON object with tokens_per_second, without the first token, and ids. Imports only what PROGRAM needs.
"""

import json
import sys
import time
from pathlib import Path

ROWS = 16


def ours(model: Path, kind: str, prompt: list[int], tokens: int, threads: int, program: str) -> tuple[float, list[int]]:
    # Before torch: sets up OpenMP, as every command of ours does.
    import mini_llm  # noqa: F401

    # isort: split
    import torch

    torch.set_num_threads(threads)
    from generate.config import GenerateConfig
    from generate.decode import Sample
    from generate.load import load_generator

    settings = GenerateConfig(temperature=0, max_new_tokens=tokens)
    generator = load_generator(model, settings, "cpu", kind, compiled=program != "model")
    # As in the peers, no token is suppressed and none ends the text.
    generator.end_ids, generator.suppressed = set(), torch.empty(0, dtype=torch.int64)

    def samples() -> list[Sample]:
        return [Sample(i, "", [prompt[0] + i, *prompt[1:]]) for i in range(ROWS if program == "batch" else 1)]

    list(generator.write(samples()[:1]))
    if program == "batch":
        start, many = time.perf_counter(), samples()
        list(generator.write(many))
        return ROWS * tokens / (time.perf_counter() - start), many[0].ids
    (sample,) = samples()
    for _ in generator.stream(sample):
        pass
    return (tokens - 1) / (sample.seconds - sample.seconds_to_first_token), sample.ids


def transformers(model: Path, kind: str, prompt: list[int], tokens: int, threads: int) -> tuple[float, list[int]]:
    import torch

    torch.set_num_threads(threads)
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    ids = torch.tensor([prompt])

    def run(count: int) -> tuple[float, list[int]]:
        start = time.perf_counter()
        out = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        return time.perf_counter() - start, out[0, len(prompt) :].tolist()

    run(4)
    first, _ = run(1)
    total, made = run(tokens)
    return (tokens - 1) / (total - first), made


def llama_cpp(model: Path, kind: str, prompt: list[int], tokens: int, threads: int) -> tuple[float, list[int]]:
    from mini_llm.export.llama_cpp import LlamaCpp

    llama = LlamaCpp(model, 512)
    # By default llama.cpp uses half of the cores.
    llama._api.llama_set_n_threads(llama._context, threads, threads)
    for _ in llama.greedy(prompt, 4):
        pass
    made = []
    start = 0.0
    for token, _ in llama.greedy(prompt, tokens):
        start = start or time.perf_counter()
        made.append(token)
    return (tokens - 1) / (time.perf_counter() - start), made


def main(program: str, model: str, kind: str, prompt: str, tokens: str, threads: str) -> None:
    given = (Path(model), kind, json.loads(prompt), int(tokens), int(threads))
    if program == "transformers":
        speed, ids = transformers(*given)
    elif program == "llama.cpp":
        speed, ids = llama_cpp(*given)
    else:
        speed, ids = ours(*given, program)
    print(json.dumps({"tokens_per_second": speed, "ids": ids}))


if __name__ == "__main__":
    main(*sys.argv[1:])
