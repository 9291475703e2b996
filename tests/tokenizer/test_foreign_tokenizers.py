"""Tokenizers of others: our ids are those of AutoTokenizer, from tokenizer.json or from the files before it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from finetune.encode import encode_texts, padding_id
from mini_llm.engine.errors import CheckpointError
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
GOOD, BAD = "what a warm and clever little film", "dull, slow: nobody should sit through this"
ROWS = [(f"{GOOD if i % 2 else BAD} {'really ' * (i % 7)}{i}", "good" if i % 2 else "bad") for i in range(60)]
TEXTS = [
    GOOD,
    "Dull.",
    "What a FILM! It isn't slow at all;  two  spaces, caf\u00e9 \u6f22\u5b57 \U0001f600\n\tand a second line. " * 2,
    " nobody ",
    "x" * 30,
]
INPUTS = ["input_ids", "attention_mask"]
# Qwen's and Llama 3's cut of a text into words, but for the number of digits.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def template(backend: Backend, single: str) -> processors.TemplateProcessing:
    names = [part for part in single.split() if part != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=[(n, backend.token_to_id(n)) for n in names])


def byte_level(*specials: str, words: bool = False) -> Backend:
    """Byte-level BPE: with GPT-2's words, or with those of Qwen and Llama 3."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words:
        split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([text for text, _ in ROWS] + TEXTS, trainer)
    return backend


def gpt2() -> tuple[Backend, dict]:
    return byte_level("<|endoftext|>"), {"tokenizer_class": "GPT2Tokenizer"}


def qwen3() -> tuple[Backend, dict]:
    backend = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", words=True)
    backend.normalizer = normalizers.NFC()
    named = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    return backend, {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False, **named}


def llama() -> tuple[Backend, dict]:
    backend = byte_level("<|begin_of_text|>", "<|end_of_text|>", words=True)
    parts = [processors.ByteLevel(trim_offsets=False), template(backend, "<|begin_of_text|> $A")]
    backend.post_processor = processors.Sequence(parts)
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return backend, {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": INPUTS, **named}


def bert() -> tuple[Backend, dict]:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    backend.train_from_iterator([text for text, _ in ROWS], trainer)
    backend.post_processor = template(backend, "[CLS] $A [SEP]")
    return backend, {"tokenizer_class": "BertTokenizer", "do_lower_case": True}


def modernbert() -> tuple[Backend, dict]:
    backend = byte_level("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    backend.post_processor = template(backend, "[CLS] $A [SEP]")
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    return backend, {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": INPUTS, **named}


def t5() -> tuple[Backend, dict]:
    backend = Backend(models.Unigram())
    mark = {"replacement": "\u2581", "prepend_scheme": "always"}
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**mark)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(words)
    backend.decoder = decoders.Metaspace(**mark)
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([text for text, _ in ROWS], trainer)
    backend.add_special_tokens([f"<extra_id_{i}>" for i in range(100)])
    backend.post_processor = template(backend, "$A </s>")
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return backend, {"tokenizer_class": "T5Tokenizer", **named}


TOKENIZERS: dict[str, Callable[[], tuple[Backend, dict]]] = {
    "gpt2": gpt2,
    "bert": bert,
    "llama": llama,
    "qwen3": qwen3,
    "modernbert": modernbert,
    "t5": t5,
}
KINDS = {"bert": "WordPiece", "t5": "Unigram"}
CAUSAL = {"gpt2", "llama", "qwen3"}


def write_tokenizer(family: str, directory: Path) -> FastTokenizer:
    backend, config = TOKENIZERS[family]()
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": family}))
    return load_tokenizer(directory)


@pytest.mark.parametrize("family", TOKENIZERS)
def test_our_ids_are_those_of_autotokenizer(family, tmp_path):
    tokenizer, auto = write_tokenizer(family, tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    causal = family in CAUSAL
    ours = encode_texts(tokenizer, TEXTS, causal, 10_000).tokens
    assert [row.tolist() for row in ours] == [auto(text)["input_ids"] for text in TEXTS]
    assert tokenizer.kind == KINDS.get(family, "byte-level BPE")
    ends = {"gpt2": (0, 0), "qwen3": (0, 0), "llama": (1, 0), "t5": (0, 1)}.get(family, (1, 1))
    assert tuple(map(len, tokenizer.frame)) == ends
    short = encode_texts(tokenizer, TEXTS, causal, 8).tokens
    for cut, whole in zip(short, ours, strict=True):
        assert len(cut) == min(8, len(whole)) and (not ends[1] or cut[-1] == whole[-1])


def test_specials_in_a_text_are_plain_text(tmp_path):
    tokenizer = write_tokenizer("bert", tmp_path)
    (row,) = encode_texts(tokenizer, ["good [SEP] [MASK] film"], False, 100).tokens
    assert [i for i in row.tolist() if i in tokenizer.special_ids - {tokenizer.unk_id}] == [2, 3]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_padding_is_never_what_ends_a_text(family, tmp_path):
    tokenizer = write_tokenizer(family, tmp_path)
    wanted = {"gpt2": "<|endoftext|>", "qwen3": "<|endoftext|>", "llama": "<|end_of_text|>", "t5": "<pad>"}
    assert tokenizer.piece(padding_id(tokenizer)) == wanted.get(family, "[PAD]")


def test_padding_where_texts_end_with_the_end_symbol(tmp_path):
    write_tokenizer("llama", tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    backend = Backend.from_str(json.dumps(tree))
    backend.post_processor = template(backend, "<|begin_of_text|> $A <|end_of_text|>")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.frame == ([0], [1]) and padding_id(tokenizer) == 0


def test_a_sentencepiece_model_beside_tokenizer_json_is_not_what_counts(tmp_path, tiny_tokenizer):
    """Others add tokens to tokenizer.json alone; what was trained here is read from tokenizer.model."""
    save_tokenizer(tiny_tokenizer, tmp_path / "ours", "causal")
    assert isinstance(load_tokenizer(tmp_path / "ours"), Tokenizer)
    write_tokenizer("llama", tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.model").write_bytes(b"ranks of a tiktoken file")
    assert load_tokenizer(tmp_path / "theirs").kind == "byte-level BPE"


def older_files(family: str, directory: Path) -> None:
    """The files of `family` from before tokenizer.json."""
    backend, _ = TOKENIZERS[family]()
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": family}))
    if family == "t5":
        SentencePieceTrainer.train(
            sentence_iterator=iter([text for text, _ in ROWS]),
            model_prefix=str(directory / "spiece"),
            model_type="unigram",
            vocab_size=45,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    elif family == "bert":
        names = sorted(backend.get_vocab(), key=backend.get_vocab().get)
        (directory / "vocab.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    else:
        backend.model.save(str(directory))


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_older_files_are_converted_once(family, tmp_path):
    older_files(family, tmp_path / "old")
    tokenizer, auto = load_tokenizer(tmp_path / "old"), AutoTokenizer.from_pretrained(tmp_path / "old")
    wanted = [auto(text)["input_ids"] for text in TEXTS]
    assert [row.tolist() for row in encode_texts(tokenizer, TEXTS, family == "gpt2", 999).tokens] == wanted
    save_tokenizer(tokenizer, tmp_path / "new", "causal", 64, padding_id(tokenizer))
    (tmp_path / "new" / "config.json").write_text(json.dumps({"model_type": family}))
    auto = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert [auto(text)["input_ids"] for text in TEXTS] == wanted
    assert auto.pad_token_id == padding_id(tokenizer) and auto.model_max_length == 64
    code = f"import sys; from mini_llm.tokenization.load import load_tokenizer; t = load_tokenizer({str(tmp_path / 'new')!r})"
    code += "; print(t.encode('what a film'), 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tokenizer.encode('what a film')} False"


def test_files_that_cannot_be_converted_are_an_error_with_the_command(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json there.*AutoTokenizer"):
        load_tokenizer(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        load_tokenizer(tmp_path)
