"""Model directories that are damaged, inconsistent or hostile: one clear error at once, and no code is executed.

The everyday damage (a file missing, another family, a truncated file) is in tests/model/test_pretrained.py.
"""

import json
import pickle
import re
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_llm.model import HEADS, ModelDirectoryError, load_model, save_model
from tests.damage import INDEX, LEFT_OUT, TWO, WEIGHTS, Trap, change
from tests.families import FAMILIES, HEADS_OF, make_config
from tests.models import decoder, randomized


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(randomized(HEADS["causal"](decoder())), tmp_path)
    return tmp_path


def refused(directory: Path) -> str:
    """The message; it comes within seconds, whatever the sizes."""
    start = time.monotonic()
    with pytest.raises(ModelDirectoryError) as caught:
        load_model(directory)
    assert time.monotonic() - start < 10
    assert str(directory) in str(caught.value)
    return str(caught.value)


# config.json


@pytest.mark.parametrize(
    "changes, message",
    [
        # It lies about the weights; the first of these would take memory that no machine has.
        ({"hidden_size": 10**9}, "weights at least; the files hold 32,"),
        ({"vocab_size": 10**9}, "config.json asks for 32,000,010,240 weights at least"),
        ({"intermediate_size": 10**9}, "weights at least"),
        ({"head_dim": 10**9}, "weights at least"),
        ({"num_attention_heads": 10**9, "num_key_value_heads": 10**9}, "weights at least"),
        ({"hidden_size": 2**30, "vocab_size": 2**30, "intermediate_size": 2**31 - 1}, "weights at least"),
        ({"num_hidden_layers": 10_000, "layer_types": LEFT_OUT}, "weights at least"),
        ({"vocab_size": 65}, "model.embed_tokens.weight gives trunk.embed.weight as (64, 32), expected (65, 32)"),
        ({"hidden_size": 36}, "expected (64, 36)"),
        ({"num_hidden_layers": 3, "layer_types": LEFT_OUT}, "model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1, "layer_types": LEFT_OUT}, "model.layers.1.input_layernorm.weight is not part of"),
        ({"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 4}, "layer_types has 2 entries"),
        ({"num_key_value_heads": 4}, "k_proj.weight"),
        ({"num_key_value_heads": 1}, "k_proj.weight gives"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        # Values that no model has.
        ({"hidden_size": "32"}, "hidden_size must be a whole number"),
        ({"hidden_size": -32}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 32.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": [32]}, "hidden_size"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"hidden_size": LEFT_OUT}, "lacks 'hidden_size'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 10000"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads (3)"),
        ({"max_position_embeddings": "many"}, "max_position_embeddings"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is not supported; known are relu"),
        ({"hidden_act": ["silu"]}, "config.json"),
        ({"eos_token_id": []}, "config.json"),
        (
            {"layer_types": ["full_attention", "chunked_attention"], "use_sliding_window": True, "sliding_window": 4},
            "chun",
        ),
        ({"id2label": ["a", "b"]}, "config.json"),
        ({"id2label": {"first": "a"}}, "config.json"),
        ({"rope_parameters": ["yarn"]}, "config.json"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported; known are default"),
        ({"rope_parameters": {"rope_type": "linear"}}, "needs factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "two"}}, "config.json"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "NaN"}}, "rope_theta"),
        ({"architectures": "Qwen3ForCausalLM"}, "is not a list"),
        ({"architectures": LEFT_OUT}, "Qwen3ForCausalLM"),
        ({"architectures": ["Qwen3ForMultipleChoice"]}, "Qwen3ForMultipleChoice"),
        ({"model_type": LEFT_OUT}, "no model_type"),
        ({"model_type": ["qwen3"]}, "no model_type"),
        ({"model_type": "mamba"}, "known are bert, gpt2, llama, marian, modernbert, qwen3, t5"),
    ],
)
def test_a_wrong_configuration_is_refused(changes, message, directory):
    change(directory, **changes)
    assert message in refused(directory)


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "3", "null", '"qwen3"', "[" * 100_000, '{"model_type": "qwen3"', "\x00"]
)
def test_a_config_file_without_a_configuration_is_refused(text, directory):
    (directory / "config.json").write_text(text)
    assert "config.json" in refused(directory)


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder = True"),
        ("bert", {"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu'"),
        ("bert", {"type_vocab_size": -1}, "type_vocab_size"),
        ("gpt2", {"n_layer": 10**9}, "n_layer must be a whole number from 1 to 10000"),
        ("gpt2", {"n_embd": 10**9}, "weights at least"),
        ("gpt2", {"n_positions": 10**9}, "weights at least"),
        ("gpt2", {"n_inner": 41}, "c_fc.weight"),
        ("gpt2", {"n_embd": 36}, "c_attn.weight is (32, 96); config.json asks for 108 rows"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ("modernbert", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("modernbert", {"global_attn_every_n_layers": 0, "layer_types": LEFT_OUT}, "config.json"),
        ("modernbert", {"local_attention": 1}, "sliding_window"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling must be one of"),
        ("t5", {"d_kv": 10**9}, "weights at least"),
        ("t5", {"num_decoder_layers": 10**9}, "num_decoder_layers"),
        ("t5", {"feed_forward_proj": 7}, "config.json"),
        ("t5", {"feed_forward_proj": "gated-swoosh"}, "feed_forward_proj = 'swoosh'"),
        ("t5", {"relative_attention_num_buckets": 2}, "relative_buckets"),
        ("t5", {"relative_attention_num_buckets": 10**9, "relative_attention_max_distance": 2**30}, "weights at least"),
        ("t5", {"relative_attention_max_distance": 0}, "relative_attention_max_distance"),
        ("marian", {"normalize_before": True}, "normalize_before = True"),
        ("marian", {"decoder_layers": 10**9}, "num_decoder_layers"),
        ("marian", {"encoder_ffn_dim": 7}, "counterpart"),
    ],
)
def test_values_that_a_family_does_not_support_are_refused(family, changes, message, tmp_path):
    head = HEADS_OF[family][0]
    save_model(randomized(HEADS[head](make_config(family, head, 0))), tmp_path)
    change(tmp_path, **changes)
    assert message in refused(tmp_path)


# Tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_extra_and_misshapen_tensors_are_named_as_in_the_file(family, tmp_path):
    head = HEADS_OF[family][0]
    save_model(randomized(HEADS[head](make_config(family, head, 0))), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    for name in list(tensors)[::5]:
        save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / WEIGHTS)
        assert f"{name} is missing" in refused(tmp_path)
        save_file({**tensors, name: tensors[name][:-1].clone()}, tmp_path / WEIGHTS)
        assert name in refused(tmp_path)
    save_file({**tensors, "adapter.weight": torch.zeros(2)}, tmp_path / WEIGHTS)
    assert f"adapter.weight is not part of a {family} model" in refused(tmp_path)


def test_integer_weights_are_refused(directory):
    tensors = load_file(directory / WEIGHTS)
    save_file({**tensors, "model.norm.weight": torch.ones(32, dtype=torch.int8)}, directory / WEIGHTS)
    assert "model.norm.weight holds torch.int8" in refused(directory)


def test_a_tied_head_that_differs_is_refused_and_an_equal_one_is_read(directory):
    tensors = load_file(directory / WEIGHTS)
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, directory / WEIGHTS)
    assert torch.equal(load_model(directory).lm_head.weight, embedding)
    for other in (embedding + 1, embedding[:5].clone(), embedding.to(torch.int32)):
        save_file({**tensors, "lm_head.weight": other}, directory / WEIGHTS)
        message = refused(directory)
        assert "tie_word_embeddings is set, but lm_head.weight differs from model.embed_tokens.weight" in message


# safetensors files


def entry(**changes: Any) -> bytes:
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return json.dumps({"model.norm.weight": fields}).encode()


@pytest.mark.parametrize(
    "header, length",
    [
        (entry(), 2**60),
        (entry(), 2**64 - 1),
        (entry(), 99_000_000),
        (entry(), 3),
        (b"{" * 40, None),
        (b'{"a": ' + b"[" * 200_000, None),
        (b"\xff\xfe" * 20, None),
        (b"[1, 2, 3]", None),
        (b'{"a": 5}', None),
        (entry(data_offsets=[-8, 0]), None),
        (entry(data_offsets=[8, 0]), None),
        (entry(data_offsets=[0, 2**62]), None),
        (entry(data_offsets=[0, 4]), None),
        (entry(shape=[2**62, 2**62]), None),
        (entry(shape=[-2]), None),
        (entry(shape=["2"]), None),
        (entry(dtype="F33"), None),
        (json.dumps({**TWO, "b": {**TWO["a"], "data_offsets": [4, 12]}}).encode(), None),
        (json.dumps({**TWO, "b": TWO["a"]}).encode(), None),
        (json.dumps({"a": {**TWO["a"], "data_offsets": [8, 16]}}).encode(), None),
    ],
)
def test_hostile_headers_are_refused(header, length, directory):
    size = struct.pack("<Q", len(header) if length is None else length)
    (directory / WEIGHTS).write_bytes(size + header + bytes(8))
    assert f"{WEIGHTS}: unreadable weights" in refused(directory)


@pytest.mark.parametrize("content", [b"", b"\x08", bytes(8), b"PK\x03\x04" + bytes(100), b"version https://git-lfs"])
def test_files_that_are_not_safetensors_are_refused(content, directory):
    (directory / WEIGHTS).write_bytes(content)
    message = refused(directory)
    assert "unreadable weights" in message or "do not fit" in message


@pytest.mark.parametrize(
    "index, message",
    [
        ("[]", "not a weight index"),
        ("{}", "not a weight index"),
        ("[" * 100_000, "not a weight index"),
        ('{"weight_map": ["a"]}', "not a weight index"),
        ('{"weight_map": {"a": ["b"]}}', "not a weight index"),
        ('{"weight_map": {"a": 5}}', "leaves the directory"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "leaves the directory"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "leaves the directory"),
        ('{"weight_map": {"a": "sub/model.safetensors"}}', "leaves the directory"),
        ('{"weight_map": {"a": ".."}}', "unreadable weights"),
        ('{"weight_map": {"a": ""}}', "unreadable weights"),
        ('{"weight_map": {"a": "a\\u0000b"}}', "unreadable weights"),
        ('{"weight_map": {"a": "nothing.safetensors"}}', "nothing.safetensors: unreadable weights"),
        ('{"weight_map": {"a": "config.json"}}', "config.json: unreadable weights"),
        ('{"weight_map": {}}', "the files hold 0"),
    ],
)
def test_an_invalid_or_escaping_index_is_refused(index, message, directory):
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(index)
    assert message in refused(directory)


# Pickled weights


@pytest.mark.parametrize("name", ["pytorch_model.bin", WEIGHTS, "a shard"])
def test_nothing_in_a_pickled_file_is_executed(name, directory):
    (directory / WEIGHTS).unlink()
    if name == "a shard":
        name = "pytorch_model.bin"
        (directory / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    trap = pickle.dumps(Trap(directory / "executed"))
    (directory / name).write_bytes(trap)
    refused(directory)
    assert not (directory / "executed").exists()
    pickle.loads(trap)
    assert (directory / "executed").exists(), "the trap works"


def test_pickled_weights_are_refused_with_the_command_that_converts_them(directory, tmp_path):
    saved = load_file(directory / WEIGHTS)
    torch.save(saved, directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()
    command = re.search(r'python -c "(.+)"', refused(directory))[1]
    assert "import Qwen3ForCausalLM" in command
    exec(command.replace("NEW_DIR", str(tmp_path / "new")))
    converted = load_model(tmp_path / "new").state_dict()
    torch.testing.assert_close(converted["trunk.norm.weight"], saved["model.norm.weight"])
