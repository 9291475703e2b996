"""Train a tokenizer: sample the corpus, train, put it through the gate, measure it, publish it."""

import io
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mini_llm.corpus.documents import iter_documents
from mini_llm.corpus.fingerprint import corpus_fingerprint
from mini_llm.corpus.report import ReadReport
from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import read_json, write_atomic
from mini_llm.engine.run.tracker import Tracker
from mini_llm.tokenization.config import TokenizerConfig, default_vocab_size
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.gate import check, hostile_strings
from mini_llm.tokenization.load import is_complete
from mini_llm.tokenization.save import save_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer

from .report import PIECE_COLUMNS, choose_sentence, cut, measure
from .sample import STRETCH, Sample, draw_sample

HELDOUT_BYTES = 4_000_000
_RESERVED = str.maketrans({"\u2585": " ", "\0": " "})  # the trainer skips any text that holds one of these
CONTROL_SYMBOLS = ("<mask>", "<cls>", "<sep>")
RESERVED_IDS = 4 + len(CONTROL_SYMBOLS) + 256  # <unk> <s> </s> <pad>, the control symbols, the bytes

# Every setting that decides how text is cut. Lossless: no normalisation, no space added or removed. SentencePiece,
# transformers and llama.cpp agree on such a model because no piece holds a space after another character.
SETTINGS = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "split_by_whitespace": True,
    # Runs of spaces become one piece, as in Llama's vocabulary: 1.55 times the bytes per token on indented source code.
    "allow_whitespace_only_pieces": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": 3,
    # Else a corpus without spaces (Chinese, base64) would have no piece for them, and bytes would spell U+2581.
    "required_chars": "\u2581",
    "max_sentence_length": 4 * STRETCH + 1,  # bytes; a longer one would be skipped
    "minloglevel": 2,
}


def train_tokenizer(
    config: TokenizerConfig, directory: Path | str, say: Callable[[str], None] | None = None
) -> Tokenizer:
    """Train the tokenizer of `config` in `directory`, or return the one there when it has this config and corpus.

    tokenizer.model appears last: a directory that holds it is complete. `say` gets a line per step (None: stderr).
    Raises ConfigError for a directory of another config or corpus and for a vocabulary size that the corpus cannot
    give, DataError for a corpus without text, CheckpointError when the gate finds a string that does not come back.
    """
    directory = Path(directory)
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    tree = config.model_dump(mode="json")
    if is_complete(directory):
        return _reuse(config, tree, directory, say)
    with RunDirectory(directory) as run:
        if is_complete(directory):  # another process was faster
            return _reuse(config, tree, directory, say)
        run.record(tree)
        with Tracker(directory, config.tracking, "tokenizer", tree) as tracker:
            return _train(config, run, tracker, say)


def _reuse(config: TokenizerConfig, tree: dict[str, Any], directory: Path, say: Callable[[str], None]) -> Tokenizer:
    run = RunDirectory(directory, main_process=False)  # takes no lock: several ranks and runs read it at once
    summary = read_json(directory / "summary.json") or {}
    # No size asked for, or the one that the rule gave: then the one that is there will do.
    same_size = config.vocab_size in (None, summary.get("vocab_size"))
    run.compare_config(tree, harmless=("run", "vocab_size", "hidden_size") if same_size else ("run", "hidden_size"))
    recorded, found = summary.get("corpus_fingerprint"), corpus_fingerprint(config.corpus)
    if recorded != found:
        raise ConfigError(
            f"{directory}: the corpus has changed since this tokenizer was trained on it "
            f"(corpus_fingerprint {recorded} -> {found}), and models may depend on the tokenizer. Keep both: choose "
            f"another name (RUN=another-name, or --run another-name). Or start over: delete {directory}"
        )
    say(run.describe_finished())
    return Tokenizer.load(directory)


def _train(config: TokenizerConfig, run: RunDirectory, tracker: Tracker, say: Callable[[str], None]) -> Tokenizer:
    started = time.monotonic()
    fingerprint = corpus_fingerprint(config.corpus)
    read = ReadReport()
    sample = draw_sample(iter_documents(config.corpus, "train", read), config.sample_bytes, config.seed)
    heldout = draw_sample(iter_documents(config.corpus, "validation"), HELDOUT_BYTES, config.seed).texts
    say(f"read {read}")
    model = train_model(config, sample, say)
    trained = time.monotonic() - started

    tokenizer = Tokenizer(model, run.path)
    gate = check(tokenizer, heldout)
    say(str(gate))
    staging = run.path / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    save_tokenizer(Tokenizer(model, staging), staging, "causal")
    _compare_with_json(tokenizer, FastTokenizer.load(staging), heldout[:200])

    figures = measure(tokenizer, heldout)
    sentence = choose_sentence(heldout)
    tracker.table("pieces", PIECE_COLUMNS, cut(tokenizer, sentence))
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
    run.finish({name: figures[name] for name in ("vocab_size", "bytes_per_token", "tokens_per_word")})
    files = {name: (staging / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    shutil.rmtree(staging)
    for name, content in (files | {"tokenizer.model": model}).items():
        write_atomic(run.path / name, content)
    tracker.artifact("tokenizer", "tokenizer", run.path / "tokenizer.model", {**figures, "sha256": tokenizer.sha256})
    return tokenizer


def train_model(config: TokenizerConfig, sample: Sample, say: Callable[[str], None] = lambda line: None) -> bytes:
    """The serialised SentencePiece model for a sample: the same bytes for the same sample and config.

    Raises ConfigError when vocab_size is too small or too large for the sample (a default size is moved instead).
    """
    if not sample.texts:
        raise DataError("the corpus holds no text to train a tokenizer from")
    sentinels = tuple(f"<extra_id_{i}>" for i in range(config.sentinels or 0))
    size = config.vocab_size or default_vocab_size(sample.corpus_bytes, config.hidden_size) + len(sentinels)
    while True:
        say(f"training {size:,} pieces on {sample.sampled_bytes / 1e6:,.1f} of {sample.corpus_bytes / 1e6:,.1f} MB")
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
            f"too small: symbols and single bytes alone take {reserved}; take {512 + len(sentinels)} or more",
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
                f"too small: symbols, bytes and the characters of this corpus take {least:,}. Take twice as many or "
                f"more, or let rare characters become bytes (character_coverage={coverage}, at least 0.98)",
                2 ** (2 * least).bit_length(),
            ) from None
        if match := re.search(r"set it to a value <= (\d+)", text):
            most = int(match[1])
            part = "corpus" if sample.sampled_bytes == sample.corpus_bytes else "sample (sample_bytes)"
            raise _WrongSize(f"too large: this {part} gives {most:,} pieces at most", most) from None
        raise DataError(f"SentencePiece cannot train on this corpus: {text}") from None
    return model.getvalue()


def _compare_with_json(tokenizer: Tokenizer, fast: FastTokenizer, texts: list[str]) -> None:
    """Raise CheckpointError unless tokenizer.json gives the ids of tokenizer.model."""
    for text in [*hostile_strings().values(), *texts]:
        if fast.encode(text) != tokenizer.encode(text):
            raise CheckpointError(
                f"tokenizer gate: tokenizer.json and tokenizer.model cut this text differently: {text[:80]!r}"
            )
