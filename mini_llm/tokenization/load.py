"""Load the tokenizer of a directory: a SentencePiece model or a tokenizer.json."""

from pathlib import Path

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import read_json
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.tokenizer import SHA256_KEY, Tokenizer

OLDER_FILES = ("vocab.txt", "vocab.json", "spiece.model")  # of tokenizers saved without a tokenizer.json


def load_tokenizer(directory: Path | str) -> Tokenizer | FastTokenizer:
    """Load the tokenizer in `directory`; both classes have the same interface.

    Reads tokenizer.model if this program trained it or if there is no tokenizer.json. Otherwise reads tokenizer.json,
    which also holds tokens added after training. Without either, transformers converts vocab.txt, vocab.json with
    merges.txt, or spiece.model. Raises CheckpointError when no such file exists or when it is damaged.
    """
    directory = Path(directory)
    has_model, has_json = ((directory / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    if has_model and (not has_json or _trained_here(directory)):
        return Tokenizer.load(directory)
    if has_json:
        return FastTokenizer.load(directory)
    if any((directory / name).is_file() for name in OLDER_FILES):
        return FastTokenizer.convert(directory)
    problem = "holds neither tokenizer.model nor tokenizer.json" if directory.is_dir() else "no such directory"
    raise CheckpointError(f"{directory}: {problem}. Train a tokenizer: python -m tokenizer --data YOUR_TEXT")


def _trained_here(directory: Path) -> bool:
    config = read_json(directory / "tokenizer_config.json")
    return isinstance(config, dict) and SHA256_KEY in config


def is_complete(directory: Path) -> bool:
    """Return whether `directory` holds a tokenizer whose training has finished."""
    return all((directory / name).is_file() for name in ("tokenizer.model", "finished.json", "summary.json"))
