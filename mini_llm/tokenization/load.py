"""Load the tokenizer of a directory: a SentencePiece model or a tokenizer.json."""

import contextlib
from pathlib import Path

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import read_json
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.tokenizer import SHA256_KEY, Tokenizer

OLDER_FILES = ("vocab.txt", "vocab.json", "spiece.model")  # of tokenizers saved without a tokenizer.json
# All files that are read here, and by transformers when it converts a tokenizer.
FILES = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "config.json", *OLDER_FILES, "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)


def load_tokenizer(directory: Path | str, rows: int | None = None) -> Tokenizer | FastTokenizer:
    """Load the tokenizer in `directory`; both classes have the same interface.

    Reads tokenizer.model if this program trained it. Otherwise reads tokenizer.json, which also holds tokens added
    after training. Without it, transformers converts vocab.txt, vocab.json with merges.txt, or a SentencePiece model;
    one without the config.json of a model is used as it is.

    `rows` is the number of embeddings of the model that reads the ids. Raises CheckpointError if the vocabulary does
    not fit in them (added tokens may lie beyond; see FastTokenizer), when no tokenizer exists, or when it is damaged.
    """
    directory = Path(directory)
    _check_regular(directory)
    has_model, has_json = ((directory / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    if has_model and (not has_json or _trained_here(directory)):
        return _load_sentencepiece(directory, rows)
    if has_json:
        return FastTokenizer.load(directory, rows)
    if any((directory / name).is_file() for name in OLDER_FILES):
        return FastTokenizer.convert(directory, rows)
    problem = "holds neither tokenizer.model nor tokenizer.json" if directory.is_dir() else "no such directory"
    advice = "Train a tokenizer: python -m tokenizer --data YOUR_TEXT"
    if (directory / "config.json").is_file():
        advice = (
            "A new tokenizer would not fit the model there: copy the files of its own (tokenizer.*) into the directory"
        )
    raise CheckpointError(f"{directory}: {problem}. {advice}")


def _check_regular(directory: Path) -> None:
    """Raise CheckpointError for a FIFO, device or folder that has the name of a file: reading it may never end."""
    for name in FILES:
        path = directory / name
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: not a regular file; a tokenizer is read from regular files only")


def _load_sentencepiece(directory: Path, rows: int | None) -> Tokenizer | FastTokenizer:
    tokenizer = Tokenizer.load(directory)
    if not _trained_here(directory) and (directory / "config.json").is_file():
        # transformers chooses by config.json how to convert a model: what it adds, and how it treats spaces.
        with contextlib.suppress(CheckpointError):
            converted = FastTokenizer.convert(directory, rows)
            # For a model type whose tokenizers are byte-level, it takes the tokens for those of such a tokenizer.
            if converted.kind != "byte-level BPE":
                return converted
    if rows is not None and tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {rows}: they do not match. "
            "Copy the tokenizer files of the training run into the model directory"
        )
    return tokenizer


def _trained_here(directory: Path) -> bool:
    config = read_json(directory / "tokenizer_config.json")
    return isinstance(config, dict) and SHA256_KEY in config


def is_complete(directory: Path) -> bool:
    """Return whether `directory` holds a tokenizer whose training has finished."""
    return all((directory / name).is_file() for name in ("tokenizer.model", "finished.json", "summary.json"))
