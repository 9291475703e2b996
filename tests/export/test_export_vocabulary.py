"""A tokenizer as a llama.cpp vocabulary: which ones are supported, with what settings, and which are refused."""

import json

import pytest
from gguf import Keys

from mini_llm.engine.errors import CheckpointError
from mini_llm.export.encoders import make_encoder
from mini_llm.export.vocabulary import GPT2, PRE_TOKENIZERS, read_vocabulary
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.load import load_tokenizer
from tests.export.tiny_tokenizers import train_sentencepiece, write_byte_level
from tests.tokenizer_kinds import fuzz, write_kind

VOCABULARY = 384


def test_a_space_before_the_text_is_written_where_the_tokenizer_puts_it(tmp_path):
    tokenizer = train_sentencepiece(tmp_path, add_dummy_prefix=True, user_defined_symbols=["<span>"])
    vocabulary = read_vocabulary(tmp_path, VOCABULARY, "causal")
    assert vocabulary.settings[Keys.Tokenizer.ADD_PREFIX] is True
    encoder = make_encoder(vocabulary)
    for text in ("the span", " the", "of\n", "a<b"):
        assert encoder.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"byte_fallback": False}, "no byte_fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalizes text"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
    ],
)
def test_a_sentencepiece_model_that_llama_cpp_would_split_differently_is_refused(changes, cause, tmp_path):
    train_sentencepiece(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=cause):
        read_vocabulary(tmp_path, VOCABULARY, "causal")


def test_unigram_is_llama_cpps_t5_vocabulary(tmp_path):
    changes = {"model_type": "unigram", "vocab_size": 60, "normalization_rule_name": "nmt_nfkc"}
    changes |= {"byte_fallback": False, "add_dummy_prefix": True, "remove_extra_whitespaces": True}
    tokenizer = train_sentencepiece(tmp_path, **changes)
    vocabulary = read_vocabulary(tmp_path, VOCABULARY, "seq2seq")
    assert vocabulary.model == "t5" and vocabulary.settings[Keys.Tokenizer.PRECOMPILED_CHARSMAP]
    encoder = make_encoder(vocabulary)
    for text in ("the  span of", "\uff53pan", "\u6f22"):
        assert encoder.encode(text) == tokenizer.encode(text)


def test_a_byte_level_tokenizer_with_an_unknown_word_split_is_refused(tmp_path):
    write_byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": "\\p{N}|[^\\p{N}]+"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tree = json.loads(path.read_text())
    for changed in ({**level, "add_prefix_space": True}, {"type": "Sequence", "pretokenizers": [split, level]}):
        path.write_text(json.dumps(tree | {"pre_tokenizer": changed}))
        with pytest.raises(CheckpointError, match="does not support its pre-tokenizer or normalizer"):
            read_vocabulary(tmp_path, VOCABULARY, "causal")
    path.write_text(json.dumps(tree | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(CheckpointError, match="does not support its pre-tokenizer or normalizer"):
        read_vocabulary(tmp_path, VOCABULARY, "causal")


@pytest.mark.parametrize("name", PRE_TOKENIZERS.values())
def test_known_word_splits_get_their_llama_cpp_names(name, tmp_path):
    write_byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    tree = json.loads(path.read_text())
    *patterns, last = next(patterns for patterns, known in PRE_TOKENIZERS.items() if known == name)
    splits = [{"type": "Digits", "individual_digits": True} if pattern == r"\p{N}" else pattern for pattern in patterns]
    if last != GPT2:
        splits.append({"type": "Split", "pattern": {"Regex": last}, "behavior": "Isolated", "invert": False})
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": last == GPT2}
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, level]}
    tree["model"]["ignore_merges"] = name == "llama-bpe"
    path.write_text(json.dumps(tree))
    vocabulary = read_vocabulary(tmp_path, VOCABULARY, "causal")
    assert vocabulary.pre == name
    encoder, tokenizer = make_encoder(vocabulary), load_tokenizer(tmp_path).plain()
    for text in (
        "the span of 123456 the  spans\n\n\tDON'T",
        "strong,don't",
        "caf\u00e9 \U0001f600 <|endoftext|>",
        "a  7 89",
    ):
        assert encoder.encode(text) == tokenizer.encode(text)


def test_smollm2_is_exported_without_a_bos_token_and_with_split_digits(tmp_path):
    write_kind("smollm2", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, FastTokenizer)
    vocabulary = read_vocabulary(tmp_path, VOCABULARY, "causal")
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "smollm")
    keys = (Keys.Tokenizer.ADD_BOS, Keys.Tokenizer.ADD_EOS, Keys.Tokenizer.BOS_ID, Keys.Tokenizer.EOS_ID)
    assert [vocabulary.settings[key] for key in keys] == [False, False, 0, 0]
    encoder = make_encoder(vocabulary)
    for text in fuzz():
        assert encoder.encode(text) == tokenizer.plain().encode(text), text


def test_tokens_beyond_the_embedding_are_not_exported(tmp_path):
    write_kind("gpt2, pad token of the configuration alone", tmp_path)
    vocabulary = read_vocabulary(tmp_path, 320, "causal")
    assert len(vocabulary.tokens) == 320 and "<pad>" not in vocabulary.tokens
    assert Keys.Tokenizer.PAD_ID not in vocabulary.settings


def test_a_template_that_llama_cpp_cannot_follow_is_refused(tmp_path):
    write_kind("roberta", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<pad>"}))
    with pytest.raises(CheckpointError, match="puts <s> </s> around a text"):
        read_vocabulary(tmp_path, VOCABULARY, "causal")
