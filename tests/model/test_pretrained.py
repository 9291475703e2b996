"""Writing and reading Hugging Face directories, with transformers as the oracle."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    Qwen3Config,
)

from mini_llm.model import HEADS, ModelDirectoryError, load_model, save_model
from tests.models import VOCABULARY, decoder, encoder, randomized, tokens

LABELS = {0: "good", 1: "bad", 2: "so so"}
AUTO = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "classifier": AutoModelForSequenceClassification,
}
LOCAL = {
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "sliding_window": 4,
    "rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "cls_token_id": 5,
    "sep_token_id": 6,
    "hidden_act": "gelu",
}
CASES = {
    "decoder": ("causal", decoder()),
    "decoder, untied": ("causal", decoder(tie_word_embeddings=False)),
    "decoder, wide heads": ("causal", decoder(head_dim=14, num_attention_heads=3, num_key_value_heads=1)),
    "decoder, biases": ("causal", decoder(attention_bias=True)),
    "encoder": ("masked", encoder(**LOCAL)),
    "encoder, biases": ("masked", encoder(**LOCAL, attention_bias=True, mlp_bias=True, norm_bias=True, head_bias=True)),
    "decoder classifier": ("classifier", decoder(id2label=LABELS)),
    "encoder classifier, mean": ("classifier", encoder(**LOCAL, id2label=LABELS)),
    "encoder classifier, cls": ("classifier", encoder(**LOCAL, id2label=LABELS, classifier_pooling="cls")),
}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokens(3, 20)
    mask = torch.ones_like(ids)
    mask[0, 15:], mask[1, 9:] = 0, 0
    ids[mask == 0] = 3
    return ids, mask


def difference(ours, theirs, head: str) -> float:
    ids, mask = batch()
    with torch.no_grad():
        a, b = ours(ids, mask), theirs(ids, attention_mask=mask).logits
    if head != "classifier":
        a, b = a[mask.bool()], b[mask.bool()]
    return (a - b).abs().max().item()


@pytest.mark.parametrize("name", CASES)
def test_transformers_reads_what_we_write(name, tmp_path):
    head, config = CASES[name]
    ours = randomized(HEADS[head](config))
    save_model(ours, tmp_path)
    theirs, report = AUTO[head].from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert difference(ours, theirs.eval(), head) < 1e-4
    again = load_model(tmp_path)
    assert again.newly_initialized == []
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))
    if head == "classifier":
        assert theirs.config.id2label == again.config.id2label == LABELS


QWEN3 = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "pad_token_id": 3,
}
MODERNBERT = {k: QWEN3[k] for k in QWEN3 if k not in ("num_key_value_heads", "head_dim")} | {
    "num_hidden_layers": 4,
    "local_attention": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    "head, config",
    [("causal", Qwen3Config(**QWEN3)), ("causal", Qwen3Config(**QWEN3, tie_word_embeddings=True))]
    + [(head, ModernBertConfig(**MODERNBERT)) for head in ("masked", "classifier")]
    + [("causal", Qwen3Config(**QWEN3, use_sliding_window=True, sliding_window=5, max_window_layers=1))],
)
def test_we_read_what_transformers_writes(head, config, sharded, tmp_path):
    theirs = randomized(AUTO[head].from_config(config))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    assert difference(load_model(tmp_path), theirs, head) < 1e-4


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_a_new_head_is_named_and_the_trunk_is_kept(name, tmp_path):
    head, config = CASES[name]
    ours = randomized(HEADS[head](config))
    save_model(ours, tmp_path)
    classifier = load_model(tmp_path, head="classifier", id2label=LABELS)
    assert classifier.newly_initialized == (
        ["score.weight"] if config.causal else ["classifier.weight", "classifier.bias"]
    )
    assert all(torch.equal(a, b) for a, b in zip(ours.trunk.parameters(), classifier.trunk.parameters(), strict=True))


def test_other_labels_reinitialize_the_last_layer(tmp_path):
    save_model(randomized(HEADS["classifier"](decoder(id2label=LABELS))), tmp_path)
    assert load_model(tmp_path, head="classifier", id2label={0: "x", 1: "y"}).newly_initialized == ["score.weight"]


def broken(directory, what: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    if what == "no config":
        (directory / "config.json").unlink()
    elif what == "not JSON":
        (directory / "config.json").write_text("{")
    elif what == "unknown family":
        (directory / "config.json").write_text(json.dumps(config | {"model_type": "llama9"}))
    elif what == "other sizes":
        (directory / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    elif what == "rope scaling":
        rope = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
        (directory / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    elif what == "missing tensor":
        weights.pop("model.norm.weight")
        save_file(weights, directory / "model.safetensors")
    elif what == "extra tensor":
        save_file(weights | {"model.extra.weight": torch.zeros(3)}, directory / "model.safetensors")
    elif what == "truncated":
        data = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif what == "pickle":
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    elif what == "shard outside":
        (directory / "model.safetensors").unlink()
        index = {"weight_map": {"model.norm.weight": "../../etc/passwd"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "what, message",
    [
        ("no config", "no config.json"),
        ("not JSON", "config.json"),
        ("unknown family", "known are bert, gpt2, llama"),
        ("other sizes", "expected"),
        ("rope scaling", "yarn"),
        ("missing tensor", "model.norm.weight is missing"),
        ("extra tensor", "model.extra.weight"),
        ("truncated", "unreadable weights"),
        ("pickle", "never loaded"),
        ("shard outside", "leaves the directory"),
    ],
)
def test_a_damaged_directory_is_refused_with_the_cause(what, message, tmp_path):
    save_model(randomized(HEADS["causal"](decoder())), tmp_path)
    broken(tmp_path, what)
    with pytest.raises(ModelDirectoryError, match=message):
        load_model(tmp_path)


def test_an_architecture_that_no_class_supports_is_refused_at_save(tmp_path):
    model = HEADS["causal"](replace(decoder(), embedding_norm=True))
    with pytest.raises(ValueError, match="embedding_norm"):
        save_model(model, tmp_path)
