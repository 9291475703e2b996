"""Foreign tokenizers: our ids equal AutoTokenizer's, from tokenizer.json or from older files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from finetune.encode import encode_texts, padding_id
from mini_llm.engine.errors import CheckpointError
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer
from tests.foreign_tokenizers import CAUSAL, KINDS, ROWS, TEXTS, TOKENIZERS, template, write_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_ids_equal_autotokenizer(family, tmp_path):
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


def test_special_tokens_in_a_text_are_read_unless_the_configuration_says_no(tmp_path):
    tokenizer = write_tokenizer("bert", tmp_path)
    (row,) = encode_texts(tokenizer, ["good [SEP] [MASK] film"], False, 100).tokens
    assert [i for i in row.tolist() if i in tokenizer.special_ids - {tokenizer.unk_id}] == [2, 3, 4, 3]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "split_special_tokens": True}))
    (row,) = encode_texts(load_tokenizer(tmp_path), ["good [SEP] [MASK] film"], False, 100).tokens
    assert [i for i in row.tolist() if i in tokenizer.special_ids - {tokenizer.unk_id}] == [2, 3]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_padding_is_not_the_token_that_ends_texts(family, tmp_path):
    tokenizer = write_tokenizer(family, tmp_path)
    wanted = {"gpt2": "<|endoftext|>", "qwen3": "<|endoftext|>", "llama": "<|end_of_text|>", "t5": "<pad>"}
    assert tokenizer.id_to_token(padding_id(tokenizer)) == wanted.get(family, "[PAD]")


def test_padding_when_texts_end_with_the_end_token(tmp_path):
    write_tokenizer("llama", tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    backend = Backend.from_str(json.dumps(tree))
    backend.post_processor = template(backend, "<|begin_of_text|> $A <|end_of_text|>")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.frame == ([0], [1]) and padding_id(tokenizer) == 0


def test_tokenizer_json_wins_over_a_foreign_sentencepiece_model(tmp_path, tiny_tokenizer):
    """Other projects add tokens only to tokenizer.json; tokenizers trained here are read from tokenizer.model."""
    save_tokenizer(tiny_tokenizer, tmp_path / "ours", "causal")
    assert isinstance(load_tokenizer(tmp_path / "ours"), Tokenizer)
    write_tokenizer("llama", tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.model").write_bytes(b"ranks of a tiktoken file")
    assert load_tokenizer(tmp_path / "theirs").kind == "byte-level BPE"


def older_files(family: str, directory: Path) -> None:
    """Write the files that `family` used before tokenizer.json."""
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
    code = "import sys; from mini_llm.tokenization.load import load_tokenizer; "
    code += f"t = load_tokenizer({str(tmp_path / 'new')!r}); "
    code += "print(t.encode('what a film'), 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tokenizer.encode('what a film')} False"


def test_files_that_cannot_be_converted_are_an_error_with_the_command(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, .*AutoTokenizer"):
        load_tokenizer(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        load_tokenizer(tmp_path)
