"""The C++ encoder gives SentencePiece's ids for hostile and random texts, small caches and odd vocabularies."""

import io
import random
import threading

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mini_llm.engine.kernels.build import load_library
from mini_llm.engine.run.machine import compiler
from mini_llm.tokenization import bpe
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.gate import hostile_strings
from mini_llm.tokenization.tokenizer import SPACE, Tokenizer
from tests.documents import make_documents
from tokenizer.sample import draw_sample
from tokenizer.train import SETTINGS, train_model

if compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

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


def changed(model: bytes, change) -> bytes:
    """The model after `change` of its NORMAL pieces, but for the space and single letters."""
    proto = ModelProto.FromString(model)
    change(proto, [piece for piece in proto.pieces if piece.type == piece.NORMAL and len(piece.piece) > 1])
    return proto.SerializeToString()


def make_scores_equal(_: ModelProto, pieces: list) -> None:
    for i, piece in enumerate(pieces):
        piece.score = -float(i // 50)


def drop_every_fifth(proto: ModelProto, pieces: list) -> None:
    """What is left cannot always be made of two pieces any more."""
    for piece in pieces[::5]:
        proto.pieces.remove(piece)


def put_spaces(_: ModelProto, pieces: list) -> None:
    """Pieces that no text gives: SentencePiece writes spaces as U+2581."""
    for piece in pieces[::5]:
        piece.piece = piece.piece.replace(SPACE, " ")


SYMBOLS = [". The", "\n\n", "\n\n\n", "a  b", "\u6f22 ", "..", "...", ".. .", "ret", "retur"]
MODELS = {
    "default": lambda: train_model(TokenizerConfig(vocab_size=600), draw_sample(make_documents(), 10**6, 0)),
    "pieces that hold spaces": lambda: train(make_documents(), split_by_whitespace=False),
    "pieces of any script": lambda: train(make_documents(), split_by_unicode_script=False, split_by_number=False),
    "symbols of the user": lambda: train(make_documents(), user_defined_symbols=SYMBOLS),
    "no runs of spaces": lambda: train(make_documents(), allow_whitespace_only_pieces=False),
    "equal scores": lambda: changed(train(make_documents()), make_scores_equal),
    "pieces out of reach": lambda: changed(train(make_documents()), drop_every_fifth),
    "pieces with a space as such": lambda: changed(train(make_documents()), put_spaces),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> bytes:
    return MODELS[request.param]()


@pytest.fixture
def tokenizer(model, monkeypatch, tmp_path) -> Tokenizer:
    monkeypatch.setattr("mini_llm.tokenization.tokenizer._FEW", 0)
    return Tokenizer(model, tmp_path)


def assert_exact(tokenizer: Tokenizer, texts: list[str]) -> None:
    plain = SentencePieceProcessor(model_proto=tokenizer.model)
    assert tokenizer._fast is not None
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.int32 and ids.tolist() == plain.encode(text), text


def test_ids_equal_sentencepiece(tokenizer):
    texts = [*hostile_strings().values(), *make_documents(40, seed=1)]
    for _ in range(2):  # unknown, then remembered
        assert_exact(tokenizer, texts)
    for seed in range(6):
        assert_exact(tokenizer, random_texts(seed))


@pytest.mark.parametrize("entries", [2, 16, 1024])
def test_small_caches(tokenizer, entries, monkeypatch):
    monkeypatch.setattr(bpe, "ENTRIES", entries)
    for seed in range(3):
        assert_exact(tokenizer, [*random_texts(seed, 30), *make_documents(3, seed)])


@pytest.mark.parametrize("entries", [2, 64, 1 << 17])
def test_every_byte_of_a_unit_counts_in_the_cache(entries, monkeypatch):
    """Ids are bytes, words differ in one position, and many words share a cache entry."""
    monkeypatch.setattr(bpe, "ENTRIES", entries)
    pieces = [*(bytes([i]) for i in range(128)), *(b"" for _ in range(128))]
    # With these no unit ends between two letters.
    pieces += [bytes([a, b]) for a in b"xy" for b in b"xy"]
    scores, fixed = [0.0] * len(pieces), {ord("x"), ord("y")}
    encoder = bpe.BytePairEncoder(load_library(bpe.SOURCE)[0], pieces, scores, fixed, dict(enumerate(range(256))))
    words = [b"x" * i + b"y" + b"x" * (length - i - 1) for length in range(1, 20) for i in range(length)]
    texts = [b" ".join(words), *words, b"x" * 70, b"\0x", b"x\0\0", b"\0", "\u00e9x".encode()]
    for threads in (1, 1, 3):
        for text, ids in zip(texts, encoder.encode(texts, threads), strict=True):
            assert ids.tolist() == list(text)


def test_long_units_with_few_ids_are_told_apart():
    """They are longer than the part of a unit that the cache compares."""
    library, _ = load_library(bpe.SOURCE)
    pieces = [*(bytes([i]) for i in range(128)), *(b"" for _ in range(128)), *(b"x" * size for size in (2, 4, 8, 16))]
    pieces += [b"xy", b"yx"]
    scores, byte_ids = [float(min(len(piece), 16)) for piece in pieces], dict(enumerate(range(256)))
    encoder = bpe.BytePairEncoder(library, pieces, scores, [], byte_ids)
    texts = [b"x" * 16 + ending for ending in (b"xx", b"xy", b"yx", b"yy", b"x", b"y", b"")]
    for text, ids in zip(texts, encoder.encode(texts, 1), strict=True):
        alone = bpe.BytePairEncoder(library, pieces, scores, [], byte_ids).encode([text], 1)[0]
        assert ids.tolist() == alone.tolist() and len(ids) < 8 and b"".join(pieces[i] for i in ids) == text


def test_stretches_of_long_texts(tokenizer, monkeypatch):
    monkeypatch.setattr("mini_llm.tokenization.tokenizer._FAST_SEGMENT", 301)
    texts = ["".join(random_texts(seed, 60)) for seed in range(6)]
    assert max(map(len, texts)) > 6000
    assert_exact(tokenizer, [*texts, "", "x" * 20_000, "ab" * 9_000, " " * 9_000])


def test_threads_share_an_encoder(tokenizer):
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


def test_a_lone_surrogate_is_replaced_as_in_a_short_text(tokenizer):
    text = "x \ud800y \ud83d\ude00"
    assert tokenizer.encode_batch([text])[0].tolist() == tokenizer.encode("x \ufffdy \U0001f600")


def drop_space(proto: ModelProto, _: list) -> None:
    """A space is spelled in the bytes of U+2581 then."""
    proto.pieces.remove(next(piece for piece in proto.pieces if piece.piece == SPACE))


OTHERS = {
    "unigram": lambda: train(make_documents(), model_type="unigram"),
    "a space before every text": lambda: train(make_documents(), add_dummy_prefix=True),
    "normalization": lambda: train(make_documents(), normalization_rule_name="nmt_nfkc"),
    "no bytes": lambda: train(make_documents(), byte_fallback=False),
    "a letter as a special symbol": lambda: train(make_documents(), control_symbols=["e"]),
    "no space": lambda: changed(train(make_documents()), drop_space),
}


@pytest.mark.parametrize("name", OTHERS)
def test_unsupported_models_use_sentencepiece(name, monkeypatch, tmp_path):
    monkeypatch.setattr("mini_llm.tokenization.tokenizer._FEW", 0)
    tokenizer = Tokenizer(OTHERS[name](), tmp_path)
    plain = SentencePieceProcessor(model_proto=tokenizer.model)
    assert tokenizer._fast is None
    for text, ids in zip(make_documents(5), tokenizer.encode_batch(make_documents(5)), strict=True):
        assert ids.tolist() == plain.encode(text)


def test_without_a_compiler_sentencepiece_encodes(monkeypatch, tmp_path):
    monkeypatch.setattr("mini_llm.tokenization.tokenizer._FEW", 0)
    monkeypatch.setattr("mini_llm.tokenization.tokenizer.load_library", lambda source: (None, "no C++ compiler found"))
    tokenizer = Tokenizer(MODELS["default"](), tmp_path)
    plain = SentencePieceProcessor(model_proto=tokenizer.model)
    texts = make_documents(5)
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [plain.encode(text) for text in texts]
    assert tokenizer._fast is None
