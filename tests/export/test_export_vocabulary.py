"""A tokenizer as llama.cpp's vocabulary: which can be one, with what settings, and which are refused."""

import json

import pytest
from gguf import Keys
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from mini_llm.engine.errors import CheckpointError
from mini_llm.export.encoders import make_encoder
from mini_llm.export.vocabulary import PRE_TOKENIZERS, read_vocabulary
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer

VOCABULARY = 384


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
        ({"remove_extra_whitespaces": True}, "takes away spaces"),
    ],
)
def test_a_sentencepiece_that_llama_cpp_would_cut_otherwise_is_refused(changes, cause, tmp_path):
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


def write_byte_level(directory, **pre_tokenizer) -> None:
    """A tokenizer as GPT-2's, of some 300 tokens."""
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


def test_a_byte_level_tokenizer_that_cuts_words_in_its_own_way_is_refused(tmp_path):
    write_byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": "\\p{N}|[^\\p{N}]+"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tree = json.loads(path.read_text())
    for changed in ({**level, "add_prefix_space": True}, {"type": "Sequence", "pretokenizers": [split, level]}):
        path.write_text(json.dumps(tree | {"pre_tokenizer": changed}))
        with pytest.raises(CheckpointError, match="without a name in llama"):
            read_vocabulary(tmp_path, VOCABULARY, "causal")
    path.write_text(json.dumps(tree | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(CheckpointError, match="without a name in llama"):
        read_vocabulary(tmp_path, VOCABULARY, "causal")


@pytest.mark.parametrize("name", PRE_TOKENIZERS.values())
def test_the_known_ways_to_cut_words_go_by_llama_cpps_names(name, tmp_path):
    write_byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    tree = json.loads(path.read_text())
    pattern = next(pattern for pattern, known in PRE_TOKENIZERS.items() if known == name)
    if pattern is not None:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
        tree["model"]["ignore_merges"] = name == "llama-bpe"
    path.write_text(json.dumps(tree))
    vocabulary = read_vocabulary(tmp_path, VOCABULARY, "causal")
    assert vocabulary.pre == name
    encoder, tokenizer = make_encoder(vocabulary), load_tokenizer(tmp_path)
    for text in ("the span of 123456 the  spans\n\n\tDON'T", "strong,don't", "caf\u00e9 \U0001f600 <|endoftext|>"):
        assert encoder.encode(text) == tokenizer.encode(text)
