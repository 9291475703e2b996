"""The token store: a corpus as token files, built once per corpus content and tokenizer, then reused.

    stores = build_store(CorpusConfig(sources="input.txt"), tokenizer, Path("runs/tokens"))
    stores["train"].read(start=0, count=1024)

    runs/tokens/<name>-<hash>/{train,validation}/
        manifest.json                                               fingerprint, counts, tokenizer sha256, shards
        tokens-00000.bin documents-00000.bin shard-00000.json ...   see shard_writer.py

The store is written to a folder named *.partial, which is renamed when it is complete. A killed run leaves its complete
shards there, and the next run continues after them. Changed content gives another hash and so another folder.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.documents import Split, iter_parts, no_text, resolve_split
from mini_llm.corpus.fingerprint import corpus_fingerprint, source_bytes
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.shard_writer import ShardWriter, token_dtype
from mini_llm.corpus.token_store import FORMAT, MANIFEST, TokenStore
from mini_llm.engine.errors import DataError
from mini_llm.engine.run.files import write_json

PARTS = ("train", "validation")
PLAIN_LINE_SECONDS = 30


def build_store(config: CorpusConfig, tokenizer: Any, root: Path) -> dict[str, TokenStore]:
    """Return {"train": store, "validation": store} for a corpus, reusing, completing or building them below `root`.

    `tokenizer` has sha256, vocab_size, bos_id, eos_id (int or None), document_frame (the ids before and after each
    document) and encode_batch(list[str]) -> list of id arrays.
    Raises DataError for unreadable sources, an empty part, or a disk that is full or cannot be written.
    """
    fingerprint = corpus_fingerprint(config)
    identity = [FORMAT, fingerprint, tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id]
    ends = [[] if i is None else [i] for i in (tokenizer.bos_id, tokenizer.eos_id)]
    if list(tokenizer.document_frame) != ends:
        identity.append(tokenizer.document_frame)
    key = f"{config.name or 'stdlib'}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
    folder = Path(root) / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # When several ranks or runs start together, one builds the store and the others wait for it.
        with FileLock(folder.with_name(f".{key}.lock")):
            stores = _existing(folder)
            if stores is None:
                stores = _build(config, tokenizer, folder, fingerprint)
            return stores
    except OSError as error:
        raise DataError(
            f"{folder}: the token store cannot be written: {error.strerror or error}. "
            "Complete shards are kept: free some disk space or choose another folder, then run again"
        ) from None


def _existing(folder: Path) -> dict[str, TokenStore] | None:
    if not folder.is_dir():
        return None
    try:
        stores = {part: TokenStore.open(folder / part) for part in PARTS}
        for store in stores.values():
            store.verify()
    except DataError as error:
        _log(f"{error} -- rebuilding the store")
        shutil.rmtree(folder)
        return None
    _log(f"reusing {folder} ({_sizes(stores)}): corpus and tokenizer are unchanged")
    return stores


def _build(config: CorpusConfig, tokenizer: Any, folder: Path, fingerprint: str) -> dict[str, TokenStore]:
    split, report, size = resolve_split(config), ReadReport(), source_bytes(config)
    partial = folder.with_name(folder.name + ".partial")
    _check_space(folder.parent, size, tokenizer)
    start = time.monotonic()
    with _progress(f"tokenizing {config.name or 'stdlib'}", size, report) as show:
        writers = {part: ShardWriter(partial / part, tokenizer) for part in PARTS}
        kept = sum(writer.kept for writer in writers.values())
        if kept:
            _log(f"{partial}: continuing after {kept} complete shards of an earlier run")
        for document in iter_parts(config, split, report):
            report.documents += 1
            report.bytes += len(document.text.encode())
            if writers[document.part].add(document.text, document.origin):
                show()
        shards = {part: writer.finish() for part, writer in writers.items()}
    for part in PARTS:
        if not shards[part]:
            shutil.rmtree(partial)
            raise no_text(config, "training" if part == "train" else part, report)
        manifest = _manifest(config, tokenizer, partial / part, shards[part], split, report)
        write_json(
            partial / part / MANIFEST,
            {**manifest, "fingerprint": fingerprint, "part": part, "files": writers[part].files},
        )
    partial.rename(folder)
    stores = {part: TokenStore.open(folder / part) for part in PARTS}
    seconds = max(time.monotonic() - start, 1e-9)
    _log(f"{report}")
    _log(f"{folder}: {_sizes(stores)} in {seconds:.1f} s ({report.bytes / 1e6 / seconds:.1f} MB/s)")
    return stores


def _manifest(
    config: CorpusConfig, tokenizer: Any, folder: Path, shards: list[dict[str, Any]], split: Split, report: ReadReport
) -> dict[str, Any]:
    dtype = token_dtype(tokenizer.vocab_size)
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for shard in shards:
        tokens = np.memmap(folder / shard["tokens_file"], dtype, "r")
        for start in range(0, len(tokens), 1 << 22):
            counts += np.bincount(tokens[start : start + (1 << 22)], minlength=len(counts))
    counts[[i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None]] = 0
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return {
        "format": FORMAT,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "tokenizer_sha256": tokenizer.sha256,
        "tokens": sum(shard["tokens"] for shard in shards),
        "documents": sum(shard["documents"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "unigram_entropy": float(-(shares * np.log(shares)).sum()),  # nats per token
        "split": split,
        "corpus": config.model_dump(mode="json"),
        "report": report.as_dict(),  # covers both parts
        "shards": shards,
    }


def _check_space(root: Path, size: int | None, tokenizer: Any) -> None:
    # Assume three bytes of text per token. Compressed files hold more text than their size suggests.
    needed = (size or 0) * token_dtype(tokenizer.vocab_size).itemsize // 3
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DataError(
            f"{root}: tokens need about {needed / 1e9:.1f} GB, only {free / 1e9:.1f} GB are free; free disk space"
        )


@contextmanager
def _progress(title: str, size: int | None, report: ReadReport) -> Iterator[Any]:
    """Show a progress bar in bytes of files if stderr is a terminal, else log a line every PLAIN_LINE_SECONDS."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    logged = time.monotonic()
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=size)

        def show() -> None:
            nonlocal logged
            done = report.bytes if size is None else report.raw_bytes
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - logged > PLAIN_LINE_SECONDS:
                logged = time.monotonic()
                _log(f"{title}: {done / 1e6:,.0f} MB" + (f" of {size / 1e6:,.0f} MB" if size else ""))

        yield show


def _sizes(stores: dict[str, TokenStore]) -> str:
    return f"{len(stores['train']):,} training and {len(stores['validation']):,} validation tokens"


def _log(message: str) -> None:
    # Other ranks of a machine read the same store after the first.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"tokens: {message}", file=sys.stderr, flush=True)
