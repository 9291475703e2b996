"""Encoding speed in MB/s against sentencepiece, tokenizers and tiktoken; token ids are compared on whole corpora.

    python -m benchmarks.encoding --data data/ --vocab-size 4096 --vocab-size 32000

All use the same vocabulary: tokenizers reads our tokenizer.json, tiktoken gets our tokens as its merges. Each figure
comes from a new process that encodes all texts once (ours with an empty cache), on one core and, with threads, on two.
"""

import json
import os
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.measure import ROOT, Comparison, interleave, output_of, publish
from mini_llm.corpus.config import CorpusConfig, SourceConfig
from mini_llm.corpus.documents import iter_documents
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.tokenizer import SPACE, Tokenizer
from tokenizer.sample import draw_sample
from tokenizer.train import train_model

GOALS = {"sentencepiece": 5.0, "tokenizers": 5.0, "tiktoken": 1.0}
BATCH = 1500  # texts per call, about 2 MB of reviews
# Words, numbers and punctuation with the preceding space, as in GPT-2, but without its slower lookahead.
PATTERN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
TEXT = "imdb/unsup.jsonl.gz"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder with imdb/, sst2/ and shakespeare/.")] = Path("data"),
    vocab_size: Annotated[list[int] | None, typer.Option(help="Size of the vocabulary; repeat for several.")] = None,
    megabytes: Annotated[float, typer.Option(help="Amount of text from imdb/unsup to encode.")] = 60,
    repeats: int = 3,
    check: Annotated[bool, typer.Option(help="First compare all token ids of all corpora.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file.")] = None,
) -> None:
    """Train each vocabulary, compare ids with SentencePiece, and time all encoders in turns."""
    if context.invoked_subcommand:
        return
    comparisons = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, total = [], 0.0
        for text in documents(data / TEXT):
            total += len(text.encode()) / 1e6
            if total > megabytes:
                break
            texts.append(text)
        (folder / "texts.json").write_text(json.dumps(texts))
        for size in vocab_size or [4096, 32000]:
            tokenizer = train(size, data, folder)
            notes = {"ids compared": compare_ids(tokenizer, data)} if check else {}
            for cores in (1, 2):
                names = ["ours", *(name for name in GOALS if find_spec(name))]
                cases = {name: partial(timed, name, cores, folder) for name in names}
                title = f"encoding, vocabulary of {size:,}, {cores} core{'s' * (cores > 1)}"
                comparisons.append(Comparison(title, "MB/s", interleave(cases, repeats), goals=GOALS, notes=notes))
    publish(comparisons, "encoding", out)


def documents(path: Path, column: str = "text") -> Any:
    source = SourceConfig(path=str(path), text=column)
    return iter_documents(CorpusConfig(sources=[source], deduplicate=False), "all")


def train(size: int, data: Path, folder: Path) -> Tokenizer:
    """Train a tokenizer with a vocabulary of `size` on 20 MB of reviews; its files are written to `folder`."""
    from mini_llm.tokenization.save import save_tokenizer

    config = TokenizerConfig(vocab_size=size)
    model = train_model(config, draw_sample(documents(data / TEXT), config.sample_bytes, 0))
    (folder / "tokenizer.json").unlink(missing_ok=True)
    save_tokenizer(Tokenizer(model, folder), folder, "causal")
    return Tokenizer(model, folder)


def compare_ids(tokenizer: Tokenizer, data: Path) -> str:
    """Compare the ids of every text of every corpus with SentencePiece; exits if any differ."""
    from sentencepiece import SentencePieceProcessor

    plain = SentencePieceProcessor(model_proto=tokenizer.model)
    columns = {".tsv": "sentence"}
    files = [path for name in ("shakespeare", "imdb", "sst2") for path in sorted((data / name).iterdir())]
    count, total = 0, 0
    for path in files:
        stream, batch = documents(path, columns.get(path.suffix, "text")), []
        for text in chain(stream, [None]):
            if text is not None:
                batch.append(text)
            if text is None or len(batch) == BATCH:
                expected = plain.encode(batch, return_type="numpy", num_threads=2) if batch else []
                for one, other in zip(tokenizer.encode_batch(batch), expected, strict=True):
                    total += len(other)
                    if not np.array_equal(one, other):
                        sys.exit(f"{path}: ids differ from SentencePiece's")
                count, batch = count + len(batch), []
    line = f"vocabulary of {tokenizer.vocab_size:,}: {total:,} ids of {count:,} texts equal those of SentencePiece"
    print(line, file=sys.stderr, flush=True)
    return line


def timed(name: str, cores: int, folder: Path) -> float:
    """MB/s of one encoder, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.encoding", "case", name, str(cores), str(folder)]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(cores), "PYTHONPATH": str(ROOT)}
    return float(output_of(command, env=environment))


@app.command()
def case(name: str, cores: int, folder: Path) -> None:
    """Internal: encode every text once and print MB/s."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    texts = json.loads((folder / "texts.json").read_text())
    batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    encode = ENCODERS[name](folder, cores)
    encode(texts[:1])
    start = time.perf_counter()
    for batch in batches:
        encode(batch)
    print(size / (time.perf_counter() - start))


def _ours(folder: Path, cores: int) -> Any:
    return Tokenizer.load(folder).encode_batch


def _sentencepiece(folder: Path, cores: int) -> Any:
    from sentencepiece import SentencePieceProcessor

    plain = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda batch: plain.encode(batch, return_type="numpy", num_threads=cores)


def _tokenizers(folder: Path, cores: int) -> Any:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(folder / "tokenizer.json"))
    return lambda batch: backend.encode_batch_fast(batch, add_special_tokens=False)


def _tiktoken(folder: Path, cores: int) -> Any:
    import tiktoken

    tokenizer = Tokenizer.load(folder)
    ordinary = (i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids and not tokenizer.is_byte(i))
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [tokenizer.id_to_token(i).replace(SPACE, " ").encode() for i in ordinary]
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
    encoding = tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    if cores == 1:
        return lambda batch: [encoding.encode_ordinary(text) for text in batch]
    return lambda batch: encoding.encode_ordinary_batch(batch, num_threads=cores)


ENCODERS = {"ours": _ours, "sentencepiece": _sentencepiece, "tokenizers": _tokenizers, "tiktoken": _tiktoken}

if __name__ == "__main__":
    app()
