"""Where the tokenizer of a corpus lies: found by the content of the corpus and the settings, whatever it is called."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.state import Summary, read_object
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.load import is_complete

# Holds the key of an unfinished run.
KEY = ".key"
# Settings that decide what is learned from a text, beside vocab_size. hidden_size only limits the default vocabulary,
# and models of several widths share a tokenizer.
LEARNED = ("sample_bytes", "character_coverage", "sentinels", "seed")


def find_tokenizer(config: TokenizerConfig, root: Path, fingerprint: str, sha256: str | None = None) -> Path | None:
    """Return the finished tokenizer run in `root` that was trained on this corpus with these settings, or None.

    Without a vocab_size, one of the default size fits, or one whose size was given; and the one with the hash `sha256`,
    which is preferred.
    """
    found: list[tuple[bool, bool, str, Path]] = []
    for model in root.glob("*/tokenizer.model"):
        directory = model.parent
        summary = read_object(directory / "summary.json", Summary)
        if summary.get("corpus_fingerprint") != fingerprint or not is_complete(directory):
            continue
        trained = _requested(directory)
        if trained is None or any(trained.get(name) != getattr(config, name) for name in LEARNED):
            continue
        given, other = trained.get("vocab_size"), summary.get("tokenizer_sha256") != sha256
        if config.vocab_size is None:
            same = given is None and trained.get("encoder", False) == config.encoder
            fits = same or given is not None or not other
        else:
            same = given == config.vocab_size
            fits = same or summary.get("vocab_size") == config.vocab_size
        if fits:
            found.append((other, not same, directory.name, directory))
    return min(found)[-1] if found else None


def new_directory(base: Path, key: str) -> Path:
    """Return the first of `base`, BASE-2, BASE-3, ... that is free or an unfinished run of this key."""
    number = 1
    while True:
        directory = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not directory.exists() or (not is_complete(directory) and read_key(directory) == key):
            return directory
        number += 1


def tokenizer_key(config: TokenizerConfig, fingerprint: str) -> str:
    """A hash of the corpus and of all settings that count."""
    settings = [fingerprint, config.vocab_size, *(getattr(config, name) for name in LEARNED)]
    settings += ["encoder"] * (config.encoder and config.vocab_size is None)
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def read_key(directory: Path) -> str | None:
    try:
        return (directory / KEY).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def _requested(directory: Path) -> dict[str, Any] | None:
    try:
        return RunDirectory(directory, main_process=False).requested()
    except ConfigError:
        return None


@contextmanager
def one_at_a_time(lock: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Wait while another launch holds `lock`, and say so."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, thread_local=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log("another launch is training this tokenizer; waiting for it")
        held.acquire()
    try:
        yield
    finally:
        held.release()
