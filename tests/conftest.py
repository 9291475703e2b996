"""What several test files start from."""

from collections.abc import Callable

import pytest
from sentencepiece import SentencePieceTrainer

from tokenizer import Tokenizer

TEXT = "def one(x):\n    return x + 1\n\n\nclass Two:\n    pass\n# caf\u00e9 \u2192 \U0001f600\n"


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Tokenizer:
    """A tokenizer as stage 1 makes them, of some 300 pieces, for models with a vocabulary of 384."""
    directory = tmp_path_factory.mktemp("tokenizer")
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines(keepends=True) * 3),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pad_id=3,
        control_symbols=["<mask>", "<cls>", "<sep>"],
        minloglevel=2,
    )
    return Tokenizer.load(directory)


@pytest.fixture
def parity(record_property) -> Callable[[str, str, str, float], None]:
    """Asserts a largest difference from the reference and leaves it for `python -m benchmarks.parity`."""

    def note(family: str, reference: str, column: str, figure: float) -> None:
        record_property("parity", (family, reference, column, figure))
        assert figure <= 1e-5, (family, reference, column)

    return note
