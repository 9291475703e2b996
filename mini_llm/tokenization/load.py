"""The tokenizer of a directory, whatever its kind."""

from pathlib import Path

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import read_json
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.tokenizer import SHA256_KEY, Tokenizer

OLDER_FILES = ("vocab.txt", "vocab.json", "spiece.model")  # tokenizers of others without a tokenizer.json


def load_tokenizer(directory: Path | str) -> "Tokenizer | FastTokenizer":
    """The tokenizer in `directory`, with the same interface whatever its kind.

    tokenizer.model where it was trained here or stands alone; else tokenizer.json, which alone holds the tokens that
    others added later; else transformers makes that of vocab.txt, vocab.json and merges.txt, or spiece.model.
    Raises CheckpointError when there is none of them, or when the file is damaged.
    """
    directory = Path(directory)
    has_model, has_json = ((directory / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    if has_model and (not has_json or _trained_here(directory)):
        return Tokenizer.load(directory)
    from mini_llm.tokenization.fast import FastTokenizer

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
    """Whether a tokenizer was trained here to the end."""
    return all((directory / name).is_file() for name in ("tokenizer.model", "finished.json", "summary.json"))
