"""One case of benchmarks.decoding in its own process: tokens/s of a program that decodes greedily with MODEL.

    python -m benchmarks.decoding_case PROGRAM MODEL TYPE PROMPT_IDS TOKENS THREADS [ROWS]

PROGRAM is ours, batch (ours with ROWS texts at once, sixteen by default), model (ours without the C++ step),
transformers, llama.cpp or "llama.cpp batch". Prints a JSON object with tokens_per_second, without the first token, and
ids; for a batch also tokens_per_cpu_second, both with the prompts. Imports only what PROGRAM needs.
"""

import json
import sys
import time
from pathlib import Path


def ours(model: Path, kind: str, prompt: list[int], tokens: int, threads: int, program: str, rows: int) -> dict:
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
        return [Sample(i, "", [prompt[0] + i, *prompt[1:]]) for i in range(rows if program == "batch" else 1)]

    list(generator.write(samples()[:1]))
    if program == "batch":
        wall, cpu, many = time.perf_counter(), time.process_time(), samples()
        list(generator.write(many))
        wall, cpu, total = time.perf_counter() - wall, time.process_time() - cpu, rows * tokens
        return {"tokens_per_second": total / wall, "tokens_per_cpu_second": total / cpu, "ids": many[0].ids}
    (sample,) = samples()
    for _ in generator.stream(sample):
        pass
    speed = (tokens - 1) / (sample.seconds - sample.seconds_to_first_token)
    return {"tokens_per_second": speed, "ids": sample.ids}


def transformers(model: Path, kind: str, prompt: list[int], tokens: int, threads: int) -> dict:
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
    return {"tokens_per_second": (tokens - 1) / (total - first), "ids": made}


def llama_cpp(model: Path, kind: str, prompt: list[int], tokens: int, threads: int) -> dict:
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
    return {"tokens_per_second": (tokens - 1) / (time.perf_counter() - start), "ids": made}


def llama_cpp_batch(model: Path, kind: str, prompt: list[int], tokens: int, threads: int, rows: int) -> dict:
    import numpy as np

    from mini_llm.export.llama_cpp import GGML_TYPE_F32, LlamaCpp

    llama = LlamaCpp(model, 512)
    api, settings, vocabulary = llama._api, llama._api.llama_context_default_params(), llama._llama.n_vocab()
    settings.n_ctx = settings.n_batch = rows * 512
    settings.n_seq_max, settings.n_threads, settings.n_threads_batch = rows, threads, threads
    settings.type_k = settings.type_v = GGML_TYPE_F32
    context = api.llama_init_from_model(llama._model, settings)
    batch = api.llama_batch_init(rows * len(prompt), 0, 1)

    def best(texts: list[list[int]], start: int) -> list[list[int]]:
        """Append tokens to each text, from position `start` on; returns the best next token of each."""
        flat = [(row, at, token) for row, text in enumerate(texts) for at, token in enumerate(text)]
        batch.n_tokens = len(flat)
        for i, (row, at, token) in enumerate(flat):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + at, 1, row
            batch.logits[i] = at == len(texts[row]) - 1
        assert api.llama_decode(context, batch) == 0
        ends = [i for i in range(len(flat)) if batch.logits[i]]
        logits = (np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), shape=(vocabulary,)) for i in ends)
        return [[int(row.argmax())] for row in logits]

    def write() -> list[int]:
        api.llama_memory_clear(api.llama_get_memory(context), True)
        made = [best([[prompt[0] + row, *prompt[1:]] for row in range(rows)], 0)]
        for at in range(len(prompt), len(prompt) + tokens - 1):
            made.append(best(made[-1], at))
        return [step[0][0] for step in made]

    write()
    wall, cpu = time.perf_counter(), time.process_time()
    ids = write()
    wall, cpu, total = time.perf_counter() - wall, time.process_time() - cpu, rows * tokens
    return {"tokens_per_second": total / wall, "tokens_per_cpu_second": total / cpu, "ids": ids}


def main(program: str, model: str, kind: str, prompt: str, tokens: str, threads: str, rows: str = "16") -> None:
    given = (Path(model), kind, json.loads(prompt), int(tokens), int(threads))
    if program == "transformers":
        figures = transformers(*given)
    elif program == "llama.cpp":
        figures = llama_cpp(*given)
    elif program == "llama.cpp batch":
        figures = llama_cpp_batch(*given, int(rows))
    else:
        figures = ours(*given, program, int(rows))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
