"""The files for Hugging Face give the same ids as SentencePiece; foreign tokenizers have our interface."""

import io
import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer

from mini_llm.engine.errors import CheckpointError
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.gate import hostile_strings
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import convert, save_tokenizer
from mini_llm.tokenization.tokenizer import SPACE, Tokenizer
from tokenizer.sample import draw_sample
from tokenizer.train import SETTINGS, train_model

TEXTS = [
    "the span of <span>a<sub>b</sub></span> and <s> or <sep <mask </s or <0x0A <unk the\n    def f(x):\n\treturn x\n"
    * 3,
    "caf\u00e9 \u6f22\u5b57 the of and to in is that it he was for on are as with his they at be this have\n\n" * 5,
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Tokenizer:
    model = train_model(TokenizerConfig(vocab_size=400), draw_sample(TEXTS * 5, 10**6, 0))
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(Tokenizer(model, directory), directory, "causal")
    return Tokenizer.load(directory)


def write_model_config(directory: Path, kind: str) -> None:
    """Write a config.json as in our model directories, since AutoTokenizer also reads the model type."""
    model_type = {"causal": "qwen3", "masked": "modernbert"}[kind]
    (directory / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 640}))


@pytest.fixture(scope="module", params=["causal", "masked"])
def exported(request, trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    write_model_config(directory, request.param)
    save_tokenizer(trained, directory, request.param, model_max_length=128)
    return request.param, AutoTokenizer.from_pretrained(directory), directory


def foreign_model(texts: list[str]) -> bytes:
    """A foreign SentencePiece model with user-defined symbols, which are never split."""
    model, lines = io.BytesIO(), iter("".join(texts).splitlines())
    symbols = ["<foo>", "self"]
    SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=600, user_defined_symbols=symbols, **SETTINGS
    )
    return model.getvalue()


def of_ours(texts: list[str], size: int, sentinels: int | None) -> bytes:
    config = TokenizerConfig(vocab_size=size, sentinels=sentinels)
    return train_model(config, draw_sample(texts, 10**6, 0))


@pytest.mark.parametrize(
    "train", [foreign_model, *(partial(of_ours, size=size, sentinels=n) for size in (400, 900) for n in (None, 3))]
)
def test_tokenizer_json_equals_the_conversion_by_transformers(train, tmp_path):
    """Except for the merges that would produce names of special tokens from text."""
    model = train([*TEXTS, *(Path(file).read_text() for file in (json.__file__, random.__file__))])
    (tmp_path / "tokenizer.model").write_bytes(model)
    theirs = LlamaTokenizer.from_pretrained(tmp_path, legacy=False, add_prefix_space=False).backend_tokenizer
    expected, ours = json.loads(theirs.to_str()), convert(Tokenizer(model, tmp_path))
    names = {token["content"] for token in expected["added_tokens"]} | {f"<0x{byte:02X}>" for byte in range(256)}
    kept = [merge for merge in expected["model"]["merges"] if not {*merge, "".join(merge)} & names]
    expected["model"]["merges"] = kept
    for pipeline in (expected, ours):
        pipeline.pop("post_processor")  # made afterwards
    assert ours == expected


def fuzz(count: int = 1500) -> list[str]:
    rng = random.Random(0)
    parts = [
        "<s>",
        "</s>",
        "<mask>",
        "<unk>",
        "<pad>",
        "<0x0A>",
        "<0xE2>",
        "<",
        "s",
        ">",
        "/",
        "sub",
        "span",
        "a",
        "the",
    ]
    parts += ["ca\u0301f\u00e9", "\u6f22", "\U0001f600", "0", "A"]
    parts += [" ", "  ", "    ", "\n", "\t", "\r", SPACE, "\0", ".", "-", "=", "\u200d"]
    texts = ["".join(rng.choices(parts, k=rng.randrange(1, 25))) for _ in range(count)]
    texts += [part * n for part in parts for n in (2, 3, 5, 16, 33)]
    return [*texts, *hostile_strings().values(), *TEXTS]


def test_autotokenizer_ids_equal_sentencepiece(trained, exported):
    _, auto, _ = exported
    for text in fuzz():
        ids = auto(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == trained.encode(text), text
        assert auto.decode(ids, skip_special_tokens=True) == trained.decode(ids)


def test_no_merge_produces_the_name_of_a_special_token(tmp_path, monkeypatch):
    """If '<s' is a token, as in HTML with letters and signs in one token, '<s' + '>' must not become <s>."""
    monkeypatch.setitem(SETTINGS, "split_by_unicode_script", False)
    documents = [f"{TEXTS[i % 2]} <strong{i} </small{i} <0x0A{i} <mask{i} " for i in range(60)]
    tokenizer = Tokenizer(train_model(TokenizerConfig(vocab_size=600), draw_sample(documents, 10**6, 0)), tmp_path)
    assert {"<s", "</s"} <= set(tokenizer._vocabulary), "else this test shows nothing"
    save_tokenizer(tokenizer, tmp_path, "causal")
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for text in fuzz():
        ids = auto(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == tokenizer.encode(text), text


def test_autotokenizer_adds_the_special_tokens_of_training(trained, exported):
    kind, auto, _ = exported
    ids = trained.encode("def f(x): the caf\u00e9")
    bos, cls, sep = trained.bos_id, trained.cls_id, trained.sep_id
    assert auto("def f(x): the caf\u00e9")["input_ids"] == ([bos, *ids] if kind == "causal" else [cls, *ids, sep])
    a, b = trained.encode("the"), trained.encode("of")
    pair = [bos, *a, bos, *b] if kind == "causal" else [cls, *a, sep, *b, sep]
    assert auto("the", "of")["input_ids"] == pair


def test_autotokenizer_pads_truncates_and_knows_every_special_token(trained, exported):
    kind, auto, _ = exported
    batch = auto(["the of and", "the"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert len(batch["input_ids"][0]) == len(batch["input_ids"][1])
    assert trained.pad_id in batch["input_ids"][1] and 0 in batch["attention_mask"][1]
    assert (batch["attention_mask"][1][0] == 0) == (kind == "causal"), "a decoder continues from the last position"
    for name in ("unk", "bos", "eos", "pad", "mask", "cls", "sep"):
        assert getattr(auto, f"{name}_token_id") == getattr(trained, f"{name}_id")
    assert auto.model_max_length == 128 and len(auto) == trained.vocab_size
    assert len(auto("the " * 500, truncation=True)["input_ids"]) == 128
    assert auto("the <mask> of")["input_ids"].count(trained.mask_id) == 1, "fill-mask prompts hold the mask token"


def test_an_exported_directory_is_a_tokenizer_directory(trained, exported, tmp_path):
    kind, _, directory = exported
    again = load_tokenizer(directory)
    assert isinstance(again, Tokenizer) and again.sha256 == trained.sha256
    other = "masked" if kind == "causal" else "causal"
    write_model_config(tmp_path, other)
    save_tokenizer(again, tmp_path, other)
    ids = AutoTokenizer.from_pretrained(tmp_path)("the of")["input_ids"]
    assert ids[0] == (trained.bos_id if other == "causal" else trained.cls_id)
    assert (tmp_path / "tokenizer.model").read_bytes() == (directory / "tokenizer.model").read_bytes()


def test_saving_again_needs_no_transformers(trained, tmp_path):
    code = (
        "import sys; from mini_llm.tokenization.load import load_tokenizer; "
        "from mini_llm.tokenization.save import save_tokenizer; "
        f"save_tokenizer(load_tokenizer({str(trained.directory)!r}), {str(tmp_path)!r}, 'causal'); "
        "print({'transformers', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained.directory / "tokenizer.json").read_bytes()


def test_contradicting_files_are_refused(trained, tmp_path):
    save_tokenizer(trained, tmp_path, "causal")
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"the"', '"eht"'))
    with pytest.raises(CheckpointError, match="vocabulary differs"):
        save_tokenizer(load_tokenizer(tmp_path), tmp_path / "model", "causal")
    other_types = json.dumps({**json.loads(text), "decoder": 7})
    for damaged in (text[:1000], other_types):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged"):
            save_tokenizer(load_tokenizer(tmp_path), tmp_path / "model", "causal")


def save_backend(backend: Backend, directory: Path, **config: object) -> FastTokenizer:
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(directory)
    assert isinstance(tokenizer, FastTokenizer)
    return tokenizer


def byte_level(directory: Path) -> FastTokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens(["<think>"])
    return save_backend(backend, directory, bos_token=None, eos_token={"content": "<|endoftext|>"})


def word_piece(directory: Path) -> FastTokenizer:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    return save_backend(backend, directory)


def unigram(directory: Path) -> FastTokenizer:
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return save_backend(backend, directory, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def llama_json(directory: Path) -> FastTokenizer:
    model = train_model(TokenizerConfig(), draw_sample(TEXTS, 10**6, 0))
    pipeline = convert(Tokenizer(model, directory))
    backend = Backend.from_str(json.dumps(pipeline))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return save_backend(backend, directory, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("make", [byte_level, word_piece, unigram, llama_json])
def test_foreign_tokenizers_have_the_same_interface(make, tmp_path):
    tokenizer = make(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    texts = [*TEXTS, "the of, and. isn't it?", "", "  two  spaces", "caf\u00e9 \u6f22\u5b57 \U0001f600", "a\nb"]
    for text, batch in zip(texts, tokenizer.encode_batch(texts), strict=True):
        ids = tokenizer.encode(text)
        if "<" not in text:
            assert ids == backend.encode(text, add_special_tokens=False).ids
        assert batch.tolist() == ids
        assert len(tokenizer.tokenize(text)) == len(ids)
        assert tokenizer.decode(ids) == backend.decode(ids), text
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)
    rng = random.Random(0)
    for _ in range(100):
        ids = rng.choices(range(-1, tokenizer.vocab_size + 3), k=12)
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)
    assert tokenizer.vocab_size == backend.get_vocab_size() and len(tokenizer.sha256) == 64


def test_special_tokens_of_foreign_tokenizers(tmp_path):
    for name in ("gpt", "bert"):
        (tmp_path / name).mkdir()
    gpt = byte_level(tmp_path / "gpt")
    assert (gpt.bos_id, gpt.eos_id, gpt.pad_id, gpt.special_ids) == (None, 0, None, {0})
    assert 0 in gpt.encode("a <|endoftext|> b"), "as AutoTokenizer reads it"
    assert not gpt.special_ids & set(gpt.plain().encode("a <|endoftext|> b"))
    assert gpt.decode(gpt.encode("a <|endoftext|> <think>b")) == "a  <think>b"
    assert gpt.decode([0, *gpt.encode("the")]) == "the"
    bert = word_piece(tmp_path / "bert")
    assert (bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id) == (0, 1, 2, 3, 4)
    assert (bert.bos_id, bert.eos_id) == (2, 3), "the tokens around a text"
    assert bert.encode("[CLS] [MASK]") == [2, 4] and not {2, 3, 4} & set(bert.plain().encode("[CLS] [MASK]"))


def test_foreign_tokenizers_are_copied_unchanged(tmp_path):
    tokenizer = word_piece(tmp_path)
    save_tokenizer(tokenizer, tmp_path / "model", "masked")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert load_tokenizer(tmp_path / "model").sha256 == tokenizer.sha256


def test_damaged_tokenizer_json_is_named(tmp_path):
    word_piece(tmp_path)
    content = (tmp_path / "tokenizer.json").read_bytes()
    for damaged in (b"", content[:500], b"[]", b'{"model": 3}', b"\xff\xfe", b"null"):
        (tmp_path / "tokenizer.json").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizers library cannot read"):
            load_tokenizer(tmp_path)
