"""Train a tokenizer: sample the corpus, train, check round trips, measure, publish."""

import io
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from mini_llm.corpus.documents import iter_documents
from mini_llm.corpus.fingerprint import corpus_fingerprint
from mini_llm.corpus.report import ReadReport
from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_atomic
from mini_llm.engine.run.state import Summary, read_object
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.tokenization.config import TokenizerConfig, default_vocab_size
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.gate import check, hostile_strings
from mini_llm.tokenization.load import is_complete
from mini_llm.tokenization.save import save_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer

from .place import KEY, find_tokenizer, new_directory, one_at_a_time, tokenizer_key
from .report import TOKEN_COLUMNS, choose_sentence, measure, token_rows
from .sample import SEGMENT, Sample, draw_sample

HELDOUT_BYTES = 4_000_000
_RESERVED = str.maketrans({"\u2585": " ", "\0": " "})  # the trainer skips texts with these
CONTROL_SYMBOLS = ("<mask>", "<cls>", "<sep>")
RESERVED_IDS = 4 + len(CONTROL_SYMBOLS) + 256  # <unk> <s> </s> <pad>, the control symbols, the byte tokens

# All settings that decide how text is tokenized. Lossless: no normalization, no space added or removed. SentencePiece,
# transformers and llama.cpp agree on this model because no token has a space after another character.
SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "split_by_whitespace": True,
    # Runs of spaces become one token, as in Llama's vocabulary: 1.55 times the bytes per token on indented source code.
    "allow_whitespace_only_pieces": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": 3,
    # Otherwise a corpus without spaces (Chinese, base64) gets no space token, and byte tokens would spell U+2581.
    "required_chars": "\u2581",
    "max_sentence_length": 4 * SEGMENT + 1,  # bytes; a longer one would be skipped
    "minloglevel": 2,
}


def train_tokenizer(
    config: TokenizerConfig, directory: Path | str | None = None, log: Callable[[str], None] | None = None
) -> Tokenizer:
    """Train the tokenizer of `config` in `directory`, or load the one there if its config and corpus are the same.

    Without a directory: in that of config.run; without a name, see find_or_train.

    Writes tokenizer.model last: a directory that holds it is complete. Calls `log` with a line per step (None: print to
    stderr). Raises ConfigError if `directory` belongs to another config or corpus or if the corpus does not allow the
    vocabulary size, DataError for a corpus without text, CheckpointError if a string does not round-trip.
    """
    log = log or print_line
    if directory is None and config.run is None:
        return find_or_train(config, config.directory, log)
    directory = Path(directory or config.directory)
    tree = config.model_dump(mode="json")
    if is_complete(directory):
        return _reuse(config, tree, directory, log)
    with one_at_a_time(directory.parent / ".locks" / directory.name, log):
        if is_complete(directory):  # another process was faster
            return _reuse(config, tree, directory, log)
        with RunDirectory(directory) as run:
            run.record(tree)
            return _train_tracked(config, tree, run, log)


def find_or_train(
    config: TokenizerConfig, base: Path, log: Callable[[str], None] | None = None, sha256: str | None = None
) -> Tokenizer:
    """Load the tokenizer beside `base` that was trained on this corpus with these settings, or train it.

    It is found by the content of the corpus, under any name, so that corpora with the same name do not collide. A new
    one lies in `base`, or in base-HASH if that is taken. A launch that needs the tokenizer that another one is training
    waits for it. `sha256`: of the tokenizer to prefer. Raises like train_tokenizer.
    """
    log, root = log or print_line, base.parent
    fingerprint = corpus_fingerprint(config.corpus)
    key = tokenizer_key(config, fingerprint)
    with one_at_a_time(root / ".locks" / f"tokenizer-{key}", log):
        found = find_tokenizer(config, root, fingerprint, sha256)
        if found is not None:
            log(RunDirectory(found, main_process=False).describe_finished())
            return Tokenizer.load(found)
        with FileLock(root / ".locks" / "names"):
            # Another corpus of this name may be on its way to the same directory.
            run = RunDirectory(new_directory(base, key))
            (run.path / KEY).write_text(key, encoding="ascii")
        with run:
            tree = config.model_dump(mode="json")
            run.record(tree)
            return _train_tracked(config, tree, run, log)


def print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _train_tracked(
    config: TokenizerConfig, tree: dict[str, Any], run: RunDirectory, log: Callable[[str], None]
) -> Tokenizer:
    with Tracker(run.path, config.tracking, "tokenizer", tree) as tracker:
        return _train(config, run, tracker, log)


def _reuse(config: TokenizerConfig, tree: dict[str, Any], directory: Path, log: Callable[[str], None]) -> Tokenizer:
    run = RunDirectory(directory, main_process=False)  # takes no lock, since several ranks and runs may read it at once
    summary = read_object(directory / "summary.json", Summary)
    # Without a requested size, or with the size found, the tokenizer there fits.
    same_size = config.vocab_size in (None, summary.get("vocab_size"))
    recorded, found = summary.get("corpus_fingerprint"), corpus_fingerprint(config.corpus)
    if recorded is None:
        raise CheckpointError(
            f"{directory / 'summary.json'}: does not say what this tokenizer was trained on: the file is damaged. "
            f"To keep the tokenizer, name it: tokenizer={directory}. To train it again, delete {directory}"
        )
    if recorded != found:
        raise ConfigError(
            f"{directory}: the corpus has changed since this tokenizer was trained on it (corpus_fingerprint "
            f"{recorded} -> {found}). Models may depend on this tokenizer: to keep it, choose another name "
            f"(RUN=another-name, or --run another-name); to replace it, delete {directory}"
        )
    run.compare_config(tree, harmless=("vocab_size", "hidden_size") if same_size else ("hidden_size",))
    log(run.describe_finished())
    return Tokenizer.load(directory)


def _train(config: TokenizerConfig, run: RunDirectory, tracker: Tracker, log: Callable[[str], None]) -> Tokenizer:
    tracker.rewind(-1)  # rows of a launch that was killed after them
    started = time.monotonic()
    fingerprint = corpus_fingerprint(config.corpus)
    read = ReadReport()
    sample = draw_sample(iter_documents(config.corpus, "train", read), config.sample_bytes, config.seed)
    heldout = draw_sample(iter_documents(config.corpus, "validation"), HELDOUT_BYTES, config.seed).texts
    log(f"read {read}")
    model = train_model(config, sample, log)
    trained = time.monotonic() - started

    tokenizer = Tokenizer(model, run.path)
    gate = check(tokenizer, heldout)
    log(str(gate))
    staging = run.path / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    save_tokenizer(Tokenizer(model, staging), staging, "causal")
    _compare_with_json(tokenizer, FastTokenizer.load(staging).plain(), heldout[:200])

    figures = measure(tokenizer, heldout)
    sentence = choose_sentence(heldout)
    tracker.table("pieces", TOKEN_COLUMNS, token_rows(tokenizer, sentence))
    tracker.log(0, {f"tokenizer/{name}": value for name, value in figures.items()}, {"train_seconds": trained})
    tracker.summary(
        {
            **figures,
            "tokenizer_sha256": tokenizer.sha256,
            "sentence": sentence,
            "corpus_fingerprint": fingerprint,
            "corpus_documents": sample.documents,
            "corpus_bytes": sample.corpus_bytes,
            "sampled_bytes": sample.sampled_bytes,
            "gate_strings": gate.strings,
            "gate_texts": gate.texts,
            "space_marks": gate.space_marks,
        }
    )
    resolved = {"run": run.path.name, "vocab_size": tokenizer.vocab_size}
    run.resolve(resolved)
    tracker.config(resolved)
    run.finish({name: figures[name] for name in ("vocab_size", "bytes_per_token", "tokens_per_word")})
    files = {name: (staging / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    shutil.rmtree(staging)
    for name, content in (files | {"tokenizer.model": model}).items():
        write_atomic(run.path / name, content)
    tracker.artifact("tokenizer", "tokenizer", run.path / "tokenizer.model", {**figures, "sha256": tokenizer.sha256})
    return tokenizer


def train_model(config: TokenizerConfig, sample: Sample, log: Callable[[str], None] = lambda line: None) -> bytes:
    """Train on `sample` and return the serialized SentencePiece model, byte for byte the same for the same inputs.

    Raises ConfigError if vocab_size is too small or too large for the sample; adjusts a default size instead.
    """
    if not sample.texts:
        raise DataError("the corpus holds no text to train a tokenizer on; check corpus.sources")
    sentinels = tuple(f"<extra_id_{i}>" for i in range(config.sentinels or 0))
    default = default_vocab_size(sample.corpus_bytes, config.hidden_size, config.encoder)
    size = config.vocab_size or default + len(sentinels)
    while True:
        log(f"training {size:,} tokens on {sample.sampled_bytes / 1e6:,.1f} of {sample.corpus_bytes / 1e6:,.1f} MB")
        try:
            return _run_trainer(sample, size, config.character_coverage, sentinels)
        except _WrongSize as wrong:
            if config.vocab_size is not None:
                raise ConfigError(f"vocab_size={size}: {wrong}") from None
            size = wrong.nearest


class _WrongSize(Exception):
    def __init__(self, message: str, nearest: int):
        super().__init__(message)
        self.nearest = nearest


def _run_trainer(sample: Sample, size: int, coverage: float, sentinels: tuple[str, ...]) -> bytes:
    from sentencepiece import SentencePieceTrainer

    reserved = RESERVED_IDS + len(sentinels)
    if size <= reserved:
        raise _WrongSize(
            f"too small: special tokens and byte tokens alone take {reserved}; use {512 + len(sentinels)} or more",
            2 * reserved,
        )
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=(text.translate(_RESERVED) for text in sample.texts),
            model_writer=model,
            vocab_size=size,
            character_coverage=coverage,
            control_symbols=[*CONTROL_SYMBOLS, *sentinels],
            **SETTINGS,
        )
    except RuntimeError as error:
        text = str(error)
        if match := re.search(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)", text):
            least = int(match[1])
            raise _WrongSize(
                f"too small: special tokens, bytes and the characters of this corpus take {least:,}. Use twice as "
                f"many, or lower character_coverage={coverage} (0.98 or more) to spell rare characters in bytes",
                2 ** (2 * least).bit_length(),
            ) from None
        if match := re.search(r"set it to a value <= (\d+)", text):
            most = int(match[1])
            part = "corpus" if sample.sampled_bytes == sample.corpus_bytes else "sample (sample_bytes)"
            raise _WrongSize(f"too large: this {part} yields at most {most:,} tokens", most) from None
        raise DataError(f"SentencePiece cannot train on this corpus: {text}") from None
    return model.getvalue()


def _compare_with_json(tokenizer: Tokenizer, fast: FastTokenizer, texts: list[str]) -> None:
    """Raise CheckpointError unless tokenizer.json and tokenizer.model give the same ids."""
    for text in [*hostile_strings().values(), *texts]:
        if fast.encode(text) != tokenizer.encode(text):
            raise CheckpointError(
                f"tokenizer gate: tokenizer.json and tokenizer.model give different ids for this text: {text[:80]!r}"
            )
