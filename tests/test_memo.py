"""Encoding with the memo gives SentencePiece's ids, for hostile and random texts, small tables and odd vocabularies."""

import io
import random
import threading

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from tests.test_tokenizer import make_documents
from tokenizer import memo
from tokenizer.config import TokenizerConfig
from tokenizer.gate import hostile_strings
from tokenizer.sample import draw_sample
from tokenizer.tokenizer import SPACE, Tokenizer
from tokenizer.train import SETTINGS, train_model

ALPHABETS = (
    [chr(i) for i in range(256)],
    [" ", "  ", SPACE, "\t", "\n", "\r\n", "\0", "\1", "\x1f", "\u00a0", "\u3000", "\u200b"],
    ["a", "b", "the", " the", ".", ",", "'", "1", "0x", "(", ")", "\n", " ", "  "],
    ["\u00e9", "e\u0301", "\u0300", "\U0001f600", "\u200d", "\U0001f468", "\U0001f3fd", "a", " "],
    ["\u6f22", "\u5b57", "\u306f", "\uff1c", "\uff53", "\ud55c", "\u0e20", "\u0939\u093f", " ", "x"],
    ["<s>", "</s>", "<unk>", "<0x0A>", "<mask>", "<", ">", " ", "s"],
    ["def", "return", "    ", "\n", ":", "_", "self.", "==", "f12", "(x, y)", SPACE * 3],
)


def random_texts(seed: int, count: int = 300) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        alphabet = rng.choice(ALPHABETS) if rng.random() < 0.7 else [*rng.choice(ALPHABETS), *rng.choice(ALPHABETS)]
        texts.append("".join(rng.choices(alphabet, k=rng.choice((0, 1, 2, 5, 20, 100, 400)))))
    return texts


def train(texts: list[str], **changes) -> bytes:
    model = io.BytesIO()
    settings = SETTINGS | {"vocab_size": 600, "character_coverage": 0.9995, "hard_vocab_limit": False} | changes
    SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **settings)
    return model.getvalue()


MODELS = {
    "default": {},
    "pieces that hold spaces": {"split_by_whitespace": False},
    "pieces of any script": {"split_by_unicode_script": False, "split_by_number": False},
    "symbols of the user": {"user_defined_symbols": [". The", "\n\n", "a  b", "\u6f22 "]},
    "no runs of spaces": {"allow_whitespace_only_pieces": False},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> bytes:
    if request.param == "default":
        return train_model(TokenizerConfig(vocab_size=600), draw_sample(make_documents(), 10**6, 0))
    return train(make_documents(), **MODELS[request.param])


@pytest.fixture
def tokenizer(model, monkeypatch, tmp_path) -> Tokenizer:
    monkeypatch.setattr("tokenizer.tokenizer._FEW", 0)
    return Tokenizer(model, tmp_path)


def assert_exact(tokenizer: Tokenizer, texts: list[str]) -> None:
    plain = SentencePieceProcessor(model_proto=tokenizer.model)
    assert tokenizer._memo is not None
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.int32 and ids.tolist() == plain.encode(text), text


def test_ids_are_those_of_sentencepiece(tokenizer):
    texts = [*hostile_strings().values(), *make_documents(40, seed=1)]
    for _ in range(2):  # unknown, then remembered
        assert_exact(tokenizer, texts)
    for seed in range(6):
        assert_exact(tokenizer, random_texts(seed))


@pytest.mark.parametrize("number", range(3))
def test_small_tables_that_overflow_and_forget(tokenizer, number, monkeypatch):
    for name in ("SLOTS", "MOST_IDS", "MOST_OTHERS", "CHUNK", "SEGMENT"):
        sizes = {"SLOTS": (4, 64, 1024), "MOST_IDS": (500, 4000, 10**6), "MOST_OTHERS": (0, 10, 1000)}
        monkeypatch.setattr(memo, name, sizes.get(name, (7, 64, 500))[number])
    for seed in range(3):
        assert_exact(tokenizer, [*random_texts(seed, 30), *make_documents(3, seed)])


@pytest.mark.parametrize("slots", [2, 64, 1 << 19])
def test_units_are_told_apart_by_every_byte(slots, monkeypatch):
    """Ids are bytes here, words differ in one place, and many share a slot."""
    monkeypatch.setattr(memo, "SLOTS", slots)
    pairs = [bytes([a, b]) for a in b" xy" for b in b"xy"]
    table = memo.Memo(
        [*(bytes([i]) for i in range(256)), *pairs],
        lambda texts: [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts],
    )
    words = [b"x" * i + b"y" + b"x" * (length - i - 1) for length in range(1, 20) for i in range(length)]
    texts = [b" ".join(words), *words, b"x" * 70, b"\0x", b"x\0\0", b"\0"]
    for _ in range(2):
        for text, ids in zip(texts, table.encode(texts), strict=True):
            assert ids.tolist() == list(text)


def test_stretches_of_long_texts(tokenizer, monkeypatch):
    monkeypatch.setattr("tokenizer.tokenizer._STRETCH", 3000)
    texts = ["".join(random_texts(seed, 60)) for seed in range(6)]
    assert max(map(len, texts)) > 6000
    assert_exact(tokenizer, [*texts, "", "x" * 20_000, "ab" * 9_000, " " * 9_000])


def test_threads_share_a_memo(tokenizer):
    failures = []

    def work(seed: int) -> None:
        try:
            assert_exact(tokenizer, random_texts(seed, 60))
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_lone_surrogate_is_replaced_as_without_the_memo(tokenizer):
    text = "x \ud800y \ud83d\ude00"
    assert tokenizer.encode_batch([text])[0].tolist() == tokenizer.encode("x \ufffdy \U0001f600")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "unigram"},
        {"add_dummy_prefix": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"byte_fallback": False},
    ],
)
def test_other_models_go_without_it(changes, monkeypatch, tmp_path):
    monkeypatch.setattr("tokenizer.tokenizer._FEW", 0)
    tokenizer = Tokenizer(train(make_documents(), **changes), tmp_path)
    plain = SentencePieceProcessor(model_proto=tokenizer.model)
    assert tokenizer._memo is None
    for text, ids in zip(make_documents(5), tokenizer.encode_batch(make_documents(5)), strict=True):
        assert ids.tolist() == plain.encode(text)
