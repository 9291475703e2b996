"""Ids, spans, frames and decoded text of other projects' tokenizers equal AutoTokenizer's."""

import json
import random

import numpy as np
import pytest
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from finetune.encode import pair_frame
from mini_llm.engine.errors import CheckpointError, DataError
from mini_llm.tokenization.framing import padding_id, text_frame
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.unit_stream import CleanStream, clean_up
from tests.foreign_tokenizers import CAUSAL, ROWS, TEXTS
from tests.tokenizer_kinds import KINDS, fuzz, reference, write_kind


def check(tokenizer, auto, model_type):
    before, after = text_frame(tokenizer, "causal" if model_type in CAUSAL else "masked")
    texts = fuzz()
    encoded = tokenizer.encode_spans(texts)
    for text, (ids, spans), batch in zip(texts, encoded, tokenizer.encode_batch(texts), strict=True):
        theirs = auto(text, return_offsets_mapping=True)
        assert [*before, *ids.tolist(), *after] == theirs["input_ids"], text
        inner = theirs["offset_mapping"][len(before) : len(theirs["input_ids"]) - len(after)]
        assert [tuple(span) for span in spans.tolist()] == inner, text
        assert batch.tolist() == tokenizer.encode(text) == ids.tolist()
    rng = random.Random(1)
    rows = [auto(text)["input_ids"] for text in texts]
    rows += [rng.choices(range(len(auto)), k=rng.randrange(1, 30)) for _ in range(60)]
    for row in rows:
        assert tokenizer.decode(row) == auto.decode(row, skip_special_tokens=True), row
        stream = tokenizer.stream()
        assert "".join(map(stream.push, row)) + stream.flush() == tokenizer.decode(row), row
    assert tokenizer.vocab_size == len(auto)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_spans_and_text_are_those_of_autotokenizer(kind, tmp_path):
    model_type = write_kind(kind, tmp_path)
    tokenizer, auto = load_tokenizer(tmp_path), reference(kind, tmp_path)
    check(tokenizer, auto, model_type)
    pair = [np.array(tokenizer.encode(text)) for text in TEXTS[:2]]
    before, between, after = pair_frame(tokenizer, model_type in CAUSAL)
    assert [*before, *pair[0], *between, *pair[1], *after] == auto(*TEXTS[:2])["input_ids"]


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "smollm2", "bert", "t5", "modernbert", "gpt2, flags"])
def test_a_tokenizer_json_without_a_configuration(kind, tmp_path):
    model_type = write_kind(kind, tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    check(load_tokenizer(tmp_path), reference(kind, tmp_path), model_type)


BPE = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "unk_id": 0}
BPE |= {"remove_extra_whitespaces": False, "bos_id": 1, "eos_id": 2, "vocab_size": 400}
UNIGRAM = {"model_type": "unigram", "vocab_size": 45, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("name", "settings", "model_type", "config"),
    [
        ("tokenizer", BPE, "llama", None),
        ("tokenizer", BPE, "llama", {**LLAMA, "legacy": False}),
        ("tokenizer", BPE, "llama", {**LLAMA, "legacy": True, "pad_token": "<pad>"}),
        ("tokenizer", BPE | {"add_dummy_prefix": False}, "llama", {**LLAMA, "add_prefix_space": False}),
        ("tokenizer", BPE | {"normalization_rule_name": "nmt_nfkc"}, "llama", None),
        ("spiece", UNIGRAM, "t5", {"tokenizer_class": "T5Tokenizer", "clean_up_tokenization_spaces": True}),
    ],
)
def test_a_sentencepiece_model_alone(name, settings, model_type, config, tmp_path):
    texts = iter([text for text, _ in ROWS])
    prefix = str(tmp_path / name)
    SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=prefix, hard_vocab_limit=False, minloglevel=2, **settings
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    check(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path), model_type)


class Parts:
    """A stream that returns prepared parts of a text."""

    def __init__(self, parts):
        self.parts = iter(parts)

    def push(self, token_id):
        return next(self.parts)

    def flush(self):
        return ""


def test_cleaning_up_a_stream_equals_cleaning_up_the_text():
    rng = random.Random(0)
    for _ in range(2000):
        parts = rng.choices([" ", " ", "'", "n", "t", "s", ".", "re", "ve", "m", "\u00e9t", "'t", " n"], k=12)
        stream = CleanStream(Parts(parts))
        assert "".join(stream.push(0) for _ in parts) + stream.flush() == clean_up("".join(parts)), parts


def test_added_tokens_beyond_the_embedding_are_left_out_with_a_remark(tmp_path):
    write_kind("gpt2, pad token of the configuration alone", tmp_path)
    whole = load_tokenizer(tmp_path)
    assert whole.remark is None and whole.vocab_size == 321 and whole.pad_id == 320
    tokenizer = load_tokenizer(tmp_path, rows=320)
    assert "1 added tokens beyond the model's 320 embeddings ('<pad>')" in tokenizer.remark
    assert tokenizer.vocab_size == 320 and tokenizer.pad_id is None and padding_id(tokenizer) < 320
    assert not [i for i in tokenizer.special_ids if i >= 320]
    assert tokenizer.encode("a film") == whole.encode("a film")
    with pytest.raises(DataError, match=r"'a <pad>' contains the token '<pad>' \(id 320\).*only 320 embeddings"):
        tokenizer.encode("a <pad>")
    with pytest.raises(CheckpointError, match="321 tokens, the model only 300: they do not match"):
        load_tokenizer(tmp_path, rows=300)


def test_a_template_with_a_token_beyond_the_embedding_is_refused(tmp_path):
    write_kind("llama, extra special tokens", tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": 320, "content": "<x>"})
    processor = tree["post_processor"]["processors"][1]
    processor["single"][0]["SpecialToken"]["id"] = "<x>"
    processor["special_tokens"] = {"<x>": {"id": "<x>", "ids": [320], "tokens": ["<x>"]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="puts '<x>' around every text, but the model has no embedding"):
        text_frame(load_tokenizer(tmp_path, rows=320), "causal")
    assert text_frame(load_tokenizer(tmp_path), "causal") == ([320], [])


def test_documents_end_with_one_eos_token(tmp_path):
    frames = {"smollm2": ([], [0]), "gpt2": ([], [0]), "llama": ([0], [1]), "bert": ([2], [3]), "t5": ([], [1])}
    for kind, frame in frames.items():
        write_kind(kind, tmp_path / kind)
        assert load_tokenizer(tmp_path / kind).document_frame == frame, kind
