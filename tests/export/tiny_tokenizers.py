"""Tiny tokenizers to export: SentencePiece and byte-level BPE."""

from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from mini_llm.tokenization.tokenizer import Tokenizer


def train_sentencepiece(directory, **changes) -> Tokenizer:
    settings = {
        "model_type": "bpe",
        "vocab_size": 340,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "split_by_unicode_script": False,
        "pad_id": 3,
    }
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the span of the strong a<sb>c<sd>e<sf>g<sh>i<sj>k<sl"] * 20),
        model_prefix=str(directory / "tokenizer"),
        hard_vocab_limit=False,
        minloglevel=2,
        **{**settings, **changes},
    )
    return Tokenizer.load(directory)


def write_byte_level(directory, **pre_tokenizer) -> None:
    """Write a tokenizer.json like GPT-2's with 300 tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **pre_tokenizer})
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the span of the strong, don't go and the span again 123 456\n"] * 20, trainer)
    directory.mkdir(exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
