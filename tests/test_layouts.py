"""Every Hugging Face family, both ways, on tiny random models; `pytest tests/test_layouts.py -s` prints the table."""

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from model import HEADS, KVCache, ModelConfig, load_model, save_model
from model.layouts import LAYOUTS, LayoutError, layout_for
from tests.test_model import randomized

VOCABULARY, PAD, EOS = 64, 3, 2
LABELS = {0: "good", 1: "bad", 2: "so so"}
TOLERANCE = 1e-5
AUTO = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classifier": AutoModelForSequenceClassification,
}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "intermediate_size": 40,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GATED = {"gated_mlp": True, "hidden_act": "gelu_new", "tie_word_embeddings": False, "logit_scale": 1.0}
# One row a family: what its random models are made of beside COMMON and what the layout fixes, in several sizes.
FAMILIES = {
    "marian": [
        {"hidden_act": "relu", "embedding_scale": math.sqrt(32)},
        {"hidden_act": "silu", "num_decoder_layers": 1, "hidden_size": 36, "num_attention_heads": 3},
    ],
    "gpt2": [{}, {"hidden_size": 30, "num_attention_heads": 6, "tie_word_embeddings": False, "hidden_act": "relu"}],
    "bert": [
        {"type_vocab_size": 2, "hidden_act": "gelu"},
        {"type_vocab_size": 1, "hidden_act": "relu", "head_act": "relu", "hidden_size": 42, "num_attention_heads": 6},
    ],
    "llama": [
        {},
        {"num_key_value_heads": 2, "head_dim": 14, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 1, "rope_scaling": LLAMA3, "tie_word_embeddings": False},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    "qwen3": [
        {"num_key_value_heads": 2},
        {"head_dim": 10, "num_attention_heads": 3, "num_key_value_heads": 1, "attention_bias": True},
    ],
    "modernbert": [
        {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 4,
            "rope_theta": 160_000.0,
            "local_rope_theta": 10_000.0,
            "hidden_act": "gelu",
            "classifier_pooling": "mean",
        },
        {
            "hidden_act": "silu",
            "classifier_pooling": "cls",
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "head_bias": True,
            "sliding_window": 64,
            "local_rope_theta": 10_000.0,
        },
    ],
    "t5": [
        {"gated_mlp": False, "hidden_act": "relu", "logit_scale": 32**-0.5},
        {**GATED, "num_decoder_layers": 1, "head_dim": 6},
    ],
}
HEADS_OF = {name: list(dict.fromkeys(LAYOUTS[name].architectures.values())) for name in FAMILIES}
CASES = [(f, h, i) for f, sizes in FAMILIES.items() for h in HEADS_OF[f] for i in range(len(sizes))]
seen: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)


def make_config(family: str, head: str, size: int, **changes) -> ModelConfig:
    fixed = {key: value for key, value in LAYOUTS[family].fixed.items() if not callable(value)}
    labels = {"id2label": LABELS} if head == "classifier" else {}
    return ModelConfig(**{**COMMON, **fixed, **labels, **FAMILIES[family][size], **changes})


def inputs(config: ModelConfig, head: str) -> dict[str, torch.Tensor]:
    """Random rows of different lengths, padded on the right; an encoder-decoder's end with one end-of-sequence."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(7, VOCABULARY, (3, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 15:], mask[1, 9:] = 0, 0
    ids = ids.where(mask.bool(), PAD)
    if config.is_encoder_decoder:
        ids[torch.arange(3), mask.sum(1) - 1] = EOS
    batch = {"input_ids": ids, "attention_mask": mask}
    if head == "seq2seq":
        batch["decoder_input_ids"] = torch.randint(7, VOCABULARY, (3, 11), generator=generator)
    if config.type_vocab_size > 1 and head == "masked":
        batch["token_type_ids"] = (torch.arange(20) > 6).int().expand(3, -1)
    return batch


def difference(ours: nn.Module, theirs: nn.Module, batch: dict[str, torch.Tensor], head: str) -> float:
    """Largest absolute difference of the logits of real tokens."""
    with torch.no_grad():
        a, b = ours(**batch), theirs(**batch).logits
    assert a.shape == b.shape
    if head in ("causal", "masked"):
        a, b = (x[batch["attention_mask"].bool()] for x in (a, b))
    return (a - b).abs().max().item()


def note(family: str, head: str, direction: str, figure: float) -> None:
    seen[family, head][direction] = max(figure, seen[family, head].get(direction, 0.0))
    assert figure <= TOLERANCE


@pytest.mark.parametrize(("family", "head", "size"), CASES)
def test_transformers_reads_what_we_write(family, head, size, tmp_path):
    config = make_config(family, head, size)
    ours = randomized(HEADS[head](config))
    save_model(ours, tmp_path)
    theirs = AUTO[head].from_pretrained(tmp_path).eval()
    assert theirs.config.model_type == family
    note(family, head, "ours to theirs", difference(ours, theirs, inputs(config, head), head))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("family", "head", "size"), CASES)
def test_we_read_what_transformers_writes(family, head, size, sharded, tmp_path):
    config = make_config(family, head, size)
    written = LAYOUTS[family].write_config(config, head)
    torch.manual_seed(size)
    theirs = randomized(AUTO[head].from_config(AutoConfig.for_model(**written)))
    theirs.save_pretrained(tmp_path, max_shard_size="10KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    note(family, head, "theirs to ours", difference(load_model(tmp_path), theirs, inputs(config, head), head))


@pytest.mark.parametrize(("family", "head"), [(f, HEADS_OF[f][0]) for f in FAMILIES])
def test_gradients_agree(family, head, tmp_path):
    config = make_config(family, head, 0)
    ours = randomized(HEADS[head](config))
    save_model(ours, tmp_path)
    theirs = AUTO[head].from_pretrained(tmp_path).eval()
    batch = inputs(config, head)
    real = batch["attention_mask"].bool() if head != "seq2seq" else torch.ones(3, 11, dtype=torch.bool)
    for logits in (ours(**batch), theirs(**batch).logits):
        logits[real].log_softmax(-1)[:, 7].mean().neg().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = LAYOUTS[family].to_theirs({name: p.grad for name, p in ours.named_parameters()}, config)
    common = expected.keys() & found.keys()
    assert len(common) >= 0.9 * len(expected)
    for name in common:
        torch.testing.assert_close(found[name], expected[name], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("family", [f for f in FAMILIES if {"causal", "seq2seq"} & set(HEADS_OF[f])])
@pytest.mark.parametrize("size", [0, 1])
def test_decoding_with_a_cache_gives_the_logits_of_one_pass(family, size):
    head = "causal" if "causal" in HEADS_OF[family] else "seq2seq"
    config = make_config(family, head, size)
    model = randomized(HEADS[head](config))
    cache = KVCache(config, 3, 20)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(7, VOCABULARY, (3, 12), generator=generator)
    source = torch.randint(7, VOCABULARY, (3, 9), generator=generator)
    mask = torch.ones_like(source)
    mask[1, 5:] = 0
    with torch.no_grad():
        if head == "causal":
            whole = model(ids)
            parts = [model(ids[:, :5], None, cache), *(model(ids[:, t : t + 1], None, cache) for t in range(5, 12))]
        else:
            whole = model(source, ids, mask)
            memory = model.trunk.encoder(source, mask)
            steps = [slice(0, 5), *(slice(t, t + 1) for t in range(5, 12))]
            parts = [model(None, ids[:, step], mask, cache=cache, memory=memory) for step in steps]
    note(family, head, "cache", (torch.cat(parts, 1) - whole).abs().max().item())


def test_next_sentence_logits_are_those_of_transformers(tmp_path):
    config = make_config("bert", "masked", 0, next_sentence=True)
    ours = randomized(HEADS["masked"](config))
    save_model(ours, tmp_path)
    theirs = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    batch = inputs(config, "masked")
    with torch.no_grad():
        (tokens, pairs), expected = ours(**batch), theirs(**batch)
    assert (tokens - expected.prediction_logits)[batch["attention_mask"].bool()].abs().max() < TOLERANCE
    assert (pairs - expected.seq_relationship_logits).abs().max() < TOLERANCE
    again = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("qwen3", "qk_norm", False),
        ("llama", "position", "sinusoidal"),
        ("gpt2", "num_key_value_heads", 2),
        ("bert", "norm_place", "pre"),
        ("t5", "attention_scale", None),
        ("marian", "embedding_scale", 3.0),
    ],
)
def test_what_no_class_can_hold_is_refused_with_its_key(family, key, value):
    head = HEADS_OF[family][0]
    config = replace(make_config(family, head, 0), **{key: value}, vocab_size=VOCABULARY)
    if family == "qwen3":
        # Without its norms a Qwen3 is a Llama, which holds it.
        assert layout_for(config, head).model_type == "llama"
        config = replace(config, first_attention_norm=False)
        key = "first_attention_norm"
    with pytest.raises(LayoutError, match=key):
        layout_for(config, head).write_config(config, head)


def test_table():
    """Prints what the tests above saw; each of them has asserted its own figure."""
    for (family, head), figures in sorted(seen.items()):
        print(f"{family:11} {head:11} " + "  ".join(f"{name} {figure:.1e}" for name, figure in figures.items()))
