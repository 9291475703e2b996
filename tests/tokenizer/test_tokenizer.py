"""Our SentencePiece tokenizers: exact round trips, special ids, streaming, damaged files, the vocabulary size rule."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2

from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from mini_llm.tokenization.config import TokenizerConfig, default_vocab_size
from mini_llm.tokenization.gate import check, hostile_strings
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.tokenizer import SPACE, Tokenizer
from tests.documents import make_documents
from tokenizer.sample import SEGMENT, draw_sample, segments
from tokenizer.train import SETTINGS, train_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_model(TokenizerConfig(vocab_size=600), draw_sample(make_documents(), 10**6, 0))


@pytest.fixture(scope="module")
def tokenizer(model, tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "tokenizer.model").write_bytes(model)
    return Tokenizer.load(directory)


def random_text(rng: random.Random) -> str:
    kinds = [(0, 0x80), (0x20, 0x7F), (0x80, 0x800), (0x800, 0xD800), (0x10000, 0x110000)]
    text = "".join(chr(rng.randrange(*rng.choice(kinds))) for _ in range(rng.randrange(40)))
    return text.replace(SPACE, "")


def test_special_ids_and_normalization(tokenizer):
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 3)
    assert (tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id) == (4, 5, 6)
    assert tokenizer.special_ids == set(range(7))
    assert tokenizer.vocab_size == 600 and tokenizer.lossless
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    assert [piece.piece for piece in proto.pieces[:7]] == ["<unk>", "<s>", "</s>", "<pad>", "<mask>", "<cls>", "<sep>"]
    assert all(piece.type == 3 for piece in proto.pieces[1:7]), "control symbols"
    assert not any(SPACE in piece.piece[1:].lstrip(SPACE) for piece in proto.pieces), "no space after a character"
    assert proto.normalizer_spec.name == "identity" and proto.trainer_spec.split_by_whitespace


def test_hostile_strings_round_trip_without_special_ids(tokenizer):
    for name, text in hostile_strings().items():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, name
        assert not tokenizer.special_ids.intersection(ids), name


def test_any_text_round_trips(tokenizer):
    rng = random.Random(1)
    for _ in range(2000):
        text = random_text(rng)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not tokenizer.special_ids.intersection(ids)


def test_space_mark_is_the_one_exception_and_is_counted(tokenizer):
    assert tokenizer.decode(tokenizer.encode(f"a{SPACE}b")) == "a b"
    report = check(tokenizer, [f"x{SPACE}{SPACE}y", "plain"])
    assert (report.texts, report.texts_with_space_mark, report.space_marks) == (2, 1, 2)
    assert "U+2581" in str(report)


def test_gate_refuses_a_tokenizer_that_changes_text(tmp_path):
    documents, path, quiet = make_documents(), tmp_path / "lossy", {"byte_fallback": True, "minloglevel": 2}
    SentencePieceTrainer.train(
        sentence_iterator=iter(documents), model_prefix=str(path), vocab_size=650, model_type="bpe", **quiet
    )
    lossy = Tokenizer((tmp_path / "lossy.model").read_bytes(), tmp_path)
    assert not lossy.lossless
    with pytest.raises(CheckpointError, match="does not round-trip"):
        check(lossy)


def test_gate_refuses_special_ids_from_text(model, tmp_path):
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.pieces[4].type = 4  # <mask> as a user-defined symbol is taken from text
    leaky = Tokenizer(proto.SerializeToString(), tmp_path)
    leaky.special_ids |= {4}
    with pytest.raises(CheckpointError, match="special token '<mask>'"):
        check(leaky)


def test_spaces_round_trip_even_if_the_corpus_has_none(tmp_path):
    model = train_model(TokenizerConfig(), draw_sample(["abcabcxyz" * 100] * 20, 10**6, 0))
    tokenizer = Tokenizer(model, tmp_path)
    check(tokenizer)
    assert tokenizer.decode(tokenizer.encode("a b  c")) == "a b  c"


def test_batches_threads_and_long_texts_give_the_same_ids(tokenizer):
    raw = SentencePieceProcessor(model_proto=tokenizer.model)
    rng = random.Random(2)
    long_word = "".join(rng.choices("thedfxy\u6f22(", k=30_000))
    texts = ["", "a", "".join(make_documents()), long_word, " " * 20_000, "x" + SPACE * 9000 + " y", "ab" * 10_000]
    texts += ["".join(rng.choices(["the", " ", SPACE, "\n    ", "def", "("], k=4000)) for _ in range(5)]
    assert max(map(len, texts)) > 20_000
    expected = [raw.encode(text) for text in texts]
    assert [tokenizer.encode(text) for text in texts] == expected
    for threads in (1, 2, None):
        batch = tokenizer.encode_batch(texts, threads)
        assert [ids.tolist() for ids in batch] == expected
        assert all(ids.dtype == np.int32 for ids in batch)
    assert len(tokenizer._cut(long_word, 4096)) > 5, "the test has to cut"
    assert tokenizer.encode_batch([]) == []


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b \ud83d\ude00")) == "a\ufffdb \U0001f600"
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(["ok", "\udfff"])] == ["ok", "\ufffd"]


def test_decode_drops_specials_and_ids_outside_the_vocabulary(tokenizer):
    ids = tokenizer.encode("the cat")
    padded = [1, *ids[:1], 4, -100, *ids[1:], 2, 3, tokenizer.vocab_size, tokenizer.vocab_size + 40]
    assert tokenizer.decode(padded) == "the cat"
    assert tokenizer.decode(np.array(padded)) == "the cat"
    assert tokenizer.decode([]) == ""


def test_tokens_join_to_the_text(tokenizer):
    assert "".join(tokenizer.tokenize("the of  and")).replace(SPACE, " ") == "the of  and"
    assert tokenizer.tokenize("\U0001f600") == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]


def test_stream_equals_decode_for_any_ids(tokenizer):
    rng = random.Random(3)
    bytes_only = [i for i in range(tokenizer.vocab_size) if tokenizer.is_byte(i)]
    for round_number in range(600):
        pool = bytes_only if round_number % 2 else range(-2, tokenizer.vocab_size + 5)
        ids = rng.choices(pool, k=rng.randrange(25))
        stream = tokenizer.stream()
        parts = [stream.push(i) for i in ids]
        assert "".join(parts) + stream.flush() == tokenizer.decode(ids)


def test_stream_never_yields_half_a_character(tokenizer):
    text = "caf\u00e9 \U0001f600\u0627\U0001f469\u200d\U0001f467 the \u20ac"
    stream, shown = tokenizer.stream(), ""
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown) and "\ufffd" not in shown
    assert shown == text and stream.flush() == ""


def test_stream_flush_replaces_incomplete_bytes_and_resets(tokenizer):
    ids = tokenizer.encode("\U0001f600")
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd" == tokenizer.decode(ids[:3])
    assert "".join(map(stream.push, ids)) == "\U0001f600"


@pytest.mark.parametrize(
    ("corpus_bytes", "hidden_size", "expected"),
    [
        (1_003_854, None, 1024),
        (1_003_854, 64, 1024),
        (1_003_854, 8, 512),
        (11_900_000, None, 4096),
        (11_900_000, 64, 4096),
        (11_900_000, 32, 2048),
        (65_000_000, None, 8192),
        (65_000_000, 64, 8192),
        (2_000_000_000, 768, 32768),
        (10**12, None, 32768),
        (10, None, 512),
    ],
)
def test_default_vocab_size(corpus_bytes, hidden_size, expected):
    assert default_vocab_size(corpus_bytes, hidden_size) == expected


@pytest.mark.parametrize(
    ("corpus_bytes", "hidden_size", "expected"),
    [
        (1_003_854, None, 2048),
        (11_900_000, 96, 8192),
        (11_900_000, 32, 2048),
        (65_000_000, 96, 8192),
        (10**9, 384, 32768),
    ],
)
def test_encoders_have_twice_the_default_vocabulary_where_it_is_small(corpus_bytes, hidden_size, expected):
    assert default_vocab_size(corpus_bytes, hidden_size, encoder=True) == expected


def test_same_sample_gives_the_same_model_in_another_process(model):
    code = (
        "import hashlib\n"
        "from mini_llm.tokenization.config import TokenizerConfig\n"
        "from tests.documents import make_documents\n"
        "from tokenizer.sample import draw_sample\n"
        "from tokenizer.train import train_model\n"
        "sample = draw_sample(make_documents(), 10**6, 0)\n"
        "print(hashlib.sha256(train_model(TokenizerConfig(vocab_size=600), sample)).hexdigest())"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == Tokenizer(model, ".").sha256


def test_sample_keeps_its_budget_and_depends_on_the_seed_alone():
    documents = make_documents(400)
    size = sum(len(document.encode()) for document in documents)
    whole = draw_sample(documents, 10**9, 0)
    assert (whole.sampled_bytes, whole.corpus_bytes, whole.documents) == (size, size, 400)
    assert sorted("".join(whole.texts)) == sorted("".join(documents))
    part = draw_sample(documents, 50_000, 0)
    assert 50_000 <= part.sampled_bytes < 50_000 + 4 * SEGMENT and part.corpus_bytes == size
    assert part == draw_sample(iter(documents), 50_000, 0)
    assert set(part.texts) != set(draw_sample(documents, 50_000, 1).texts)
    # One long document among short ones is sampled like the rest.
    mixed = draw_sample([*documents, "z y " * 200_000], 100_000, 0)
    assert 0.5 < sum(len(t) for t in mixed.texts if "z y" in t) / mixed.sampled_bytes < 1


def test_long_and_reserved_texts_are_not_skipped_by_the_trainer():
    for text in ("q" * 300_000, "qqq\u2585 " * 500, "qq\0q " * 500):
        assert "".join(segments(text)) == text
        model = train_model(TokenizerConfig(), draw_sample([text, *make_documents(5)], 10**6, 0))
        assert "qq" in Tokenizer(model, ".")._vocabulary


@pytest.mark.parametrize(
    ("size", "message"),
    [(1, "too small.*263"), (263, "too small"), (270, "too small.*characters of this corpus take"), (10**6, "at most")],
)
def test_impossible_vocab_size_says_what_is_possible(size, message):
    with pytest.raises(ConfigError, match=message):
        train_model(TokenizerConfig(vocab_size=size), draw_sample(make_documents(), 10**6, 0))


def test_largest_possible_vocab_size_is_the_one_in_the_message():
    sample = draw_sample(make_documents(), 10**6, 0)
    with pytest.raises(ConfigError) as caught:
        train_model(TokenizerConfig(vocab_size=500_000), sample)
    largest = int(str(caught.value).split("at most ")[1].split(" ")[0].replace(",", ""))
    assert Tokenizer(train_model(TokenizerConfig(vocab_size=largest), sample), ".").vocab_size == largest


def test_default_size_fits_itself_to_a_tiny_or_a_many_character_corpus():
    tiny = Tokenizer(train_model(TokenizerConfig(), draw_sample(["a b c ab bc"], 10**6, 0)), ".")
    assert tiny.vocab_size < 512
    rng = random.Random(0)
    chinese = ["".join(chr(rng.randrange(0x4E00, 0x4E00 + 800)) for _ in range(500)) for _ in range(40)]
    check(Tokenizer(train_model(TokenizerConfig(), draw_sample(chinese, 10**6, 0)), "."))


def test_corpus_without_text_is_an_error():
    with pytest.raises(DataError, match="no text"):
        train_model(TokenizerConfig(), draw_sample([], 10**6, 0))


def test_broken_model_files_raise_and_never_crash(model, tmp_path):
    """Runs in a subprocess, because a segmentation fault would end the test run."""
    (tmp_path / "good.model").write_bytes(model)
    code = """
import random, sys
from mini_llm.engine.errors import CheckpointError
from mini_llm.tokenization.tokenizer import Tokenizer
good = open(sys.argv[1], "rb").read()
refused = 0
for seed in range(300):
    rng = random.Random(seed)
    data = bytearray(good)
    if seed % 3 == 0:
        data = data[: rng.randrange(len(data))]
    elif seed % 3 == 1:
        data = rng.randbytes(rng.randrange(5000))
    else:
        for _ in range(rng.choice([1, 20])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    try:
        tokenizer = Tokenizer(bytes(data), "somewhere")
        tokenizer.decode(tokenizer.encode("def f(x):\\n    return '\\u6f22' <s>\\0"))
    except CheckpointError as error:
        assert "somewhere/tokenizer.model" in str(error)
        refused += 1
print(refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "good.model")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200


def test_missing_huge_and_swapped_models_are_named(tokenizer, model, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds neither.*Train a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds neither.*would not fit the model there: copy"):
        load_tokenizer(tmp_path / "bare")
    with open(tmp_path / "tokenizer.model", "wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(CheckpointError, match="too large"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_model_sha256": "' + "0" * 64 + '"}')
    with pytest.raises(CheckpointError, match=tokenizer.sha256):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path).sha256 == tokenizer.sha256


def test_loading_and_encoding_import_neither_torch_nor_transformers(tokenizer):
    code = (
        "import sys, mini_llm.tokenization; assert not {'sentencepiece', 'pydantic'} & set(sys.modules); "
        "from mini_llm.tokenization.load import load_tokenizer; "
        f"t = load_tokenizer({str(tokenizer.directory)!r}); t.decode(t.encode('the cat' * 2000)); "
        "t.stream(); print(sorted({'torch', 'transformers', 'tokenizers', 'wandb', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_setting_reaches_the_model(model):
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for key, value in SETTINGS.items():
        if key not in ("model_type", "minloglevel", "normalization_rule_name", "control_symbols"):
            spec = proto.trainer_spec if hasattr(proto.trainer_spec, key) else proto.normalizer_spec
            assert getattr(spec, key) == value, key
