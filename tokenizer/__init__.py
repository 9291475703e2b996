"""STAGE 1: text in, a tokenizer directory out; and the tokenizer that every later stage uses.

config.py     TokenizerConfig and the rule for the vocabulary size
sample.py     a seeded sample of a corpus in bounded memory
train.py      train_tokenizer: sample, train, check, report, publish
gate.py       the strings that a tokenizer must give back unchanged
report.py     what it is worth on held-out text, and the picture of how a sentence is cut
tokenizer.py  Tokenizer (SentencePiece) and load_tokenizer
bpe.py        BytePairEncoder: the same ids many times faster, in C++ (cpp/)
fast.py       FastTokenizer: the same interface over a tokenizer.json
stream.py     StreamDecoder: ids one by one, text without half characters
export.py     save_tokenizer: the files that transformers reads

python -m tokenizer --data my/texts
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizer.config import TokenizerConfig, default_vocab_size
    from tokenizer.export import save_tokenizer
    from tokenizer.fast import FastTokenizer
    from tokenizer.stream import StreamDecoder
    from tokenizer.tokenizer import Tokenizer, load_tokenizer
    from tokenizer.train import train_tokenizer

_HOMES = {
    "FastTokenizer": "fast",
    "StreamDecoder": "stream",
    "Tokenizer": "tokenizer",
    "TokenizerConfig": "config",
    "default_vocab_size": "config",
    "load_tokenizer": "tokenizer",
    "save_tokenizer": "export",
    "train_tokenizer": "train",
}

__all__ = [
    "FastTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerConfig",
    "default_vocab_size",
    "load_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenizer' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"tokenizer.{_HOMES[name]}"), name)
