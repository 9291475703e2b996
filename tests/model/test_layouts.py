"""Every Hugging Face family, written and read, as tiny random models; `python -m benchmarks.parity` shows figures."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
)

from mini_llm.model import HEADS, KVCache, ModelConfig, load_model, save_model
from mini_llm.model.huggingface.layouts import LAYOUTS, LayoutError, layout_for
from tests.families import AUTO, EOS, FAMILIES, HEADS_OF, LABELS, PAD, VOCABULARY, make_config
from tests.models import randomized

PADDINGS = ("right", "left", None)
CASES = [(f, h, i) for f, sizes in FAMILIES.items() for h in HEADS_OF[f] for i in range(len(sizes))]
CACHED = {"causal", "seq2seq"}
BY_TOKEN = {"causal", "masked", "tokens", "questions"}


def inputs(config: ModelConfig, head: str, padding: str | None = "right") -> dict[str, Tensor]:
    """Random rows, of different lengths with `padding`; an encoder-decoder's end with one end-of-sequence."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(7, VOCABULARY, (3, 20), generator=generator)
    lengths = torch.tensor([[15], [9], [20]]) if padding else torch.full((3, 1), 20)
    mask = (torch.arange(20) < lengths).long()
    mask = mask.flip(1) if padding == "left" else mask
    ids = ids.where(mask.bool(), PAD)
    if config.is_encoder_decoder:
        ids[torch.arange(3), -1 if padding == "left" else lengths.squeeze() - 1] = EOS
    batch = {"input_ids": ids, "attention_mask": mask} if padding else {"input_ids": ids}
    if head == "seq2seq":
        batch["decoder_input_ids"] = torch.randint(7, VOCABULARY, (3, 11), generator=generator)
    if config.type_vocab_size > 1 and head != "causal":
        batch["token_type_ids"] = (torch.arange(20) > 6).int().expand(3, -1)
    return batch


def real(logits: Tensor, batch: dict[str, Tensor], head: str) -> Tensor:
    """The logits of real tokens."""
    return logits[batch["attention_mask"].bool()] if head in BY_TOKEN and "attention_mask" in batch else logits


def logits_of(output, head: str) -> Tensor:
    """The logits in what a model of transformers returns."""
    if head == "questions":
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits


def difference(ours: nn.Module, theirs: nn.Module, head: str) -> float:
    """Largest absolute difference of the logits of real tokens, whatever the padding."""
    found = []
    for padding in PADDINGS:
        if padding == "left" and head == "classifier" and ours.config.classifier_pooling == "cls":
            continue  # its first token would be padding
        batch = inputs(ours.config, head, padding)
        with torch.no_grad():
            a, b = ours(**batch), logits_of(theirs(**batch), head)
        assert a.shape == b.shape and b.abs().max() > 0.1
        found.append((real(a, batch, head) - real(b, batch, head)).abs().max().item())
    return max(found)


@pytest.mark.parametrize(("family", "head", "size"), CASES)
def test_transformers_reads_what_we_write(family, head, size, tmp_path, assert_parity):
    ours = randomized(HEADS[head](make_config(family, head, size)))
    save_model(ours, tmp_path)
    theirs, report = AUTO[head].from_pretrained(tmp_path, output_loading_info=True)
    assert theirs.config.model_type == family
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_parity(family, type(theirs).__name__, "ours to theirs", difference(ours, theirs.eval(), head))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("family", "head", "size"), CASES)
def test_we_read_what_transformers_writes(family, head, size, sharded, tmp_path, assert_parity):
    written = LAYOUTS[family].write_config(make_config(family, head, size), head)
    torch.manual_seed(size)
    theirs = randomized(AUTO[head].from_config(AutoConfig.for_model(**written)))
    theirs.save_pretrained(tmp_path, max_shard_size="10KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    ours = load_model(tmp_path)
    assert not ours.newly_initialized and not ours.left_behind
    figure = difference(ours, theirs, head)
    assert_parity(family, type(theirs).__name__, "sharded" if sharded else "theirs to ours", figure)


@pytest.mark.parametrize(("family", "head"), [(f, h) for f in FAMILIES for h in HEADS_OF[f]])
def test_gradients_agree(family, head, tmp_path, assert_parity):
    config = make_config(family, head, 0)
    ours = randomized(HEADS[head](config))
    save_model(ours, tmp_path)
    theirs = AUTO[head].from_pretrained(tmp_path).eval()
    batch = inputs(config, head)
    for logits in (ours(**batch), logits_of(theirs(**batch), head)):
        real(logits, batch, head).log_softmax(-1)[..., 1].mean().neg().backward()
    layout = LAYOUTS[family].for_head(head)
    expected = layout.rename({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    found = layout.to_theirs({n: p.grad for n, p in ours.named_parameters() if p.grad is not None}, config)
    # Marian's bias of the logits is a buffer.
    assert found.keys() - dict(theirs.named_buffers()).keys() == expected.keys()
    figure = max((found[name] - expected[name]).abs().max().item() for name in expected)
    assert_parity(family, type(theirs).__name__, "gradients", figure)


@pytest.mark.parametrize(("family", "head", "size"), [(f, h, i) for f, h, i in CASES if h in CACHED])
def test_decoding_with_a_cache_gives_the_logits_of_one_pass(family, head, size, tmp_path, assert_parity):
    config = make_config(family, head, size)
    ours = randomized(HEADS[head](config))
    save_model(ours, tmp_path)
    theirs = AUTO[head].from_pretrained(tmp_path).eval()
    cache = KVCache(config, 3, 20)
    batch = inputs(config, head, "left" if head == "causal" else "right")
    mask, ids = batch["attention_mask"], batch["input_ids" if head == "causal" else "decoder_input_ids"]
    steps = [slice(0, 5), *(slice(t, t + 1) for t in range(5, ids.size(1)))]
    with torch.no_grad():
        if head == "causal":
            parts = [ours(ids[:, step], mask[:, : step.stop], cache) for step in steps]
        else:
            memory = ours.trunk.encoder(batch["input_ids"], mask)
            parts = [ours(None, ids[:, step], mask, cache=cache, memory=memory) for step in steps]
        found, expected = torch.cat(parts, 1), theirs(**batch).logits
    figure = (real(found, batch, head) - real(expected, batch, head)).abs().max().item()
    assert_parity(family, type(theirs).__name__, "cache", figure)


def test_next_sentence_logits_are_those_of_transformers(tmp_path, assert_parity):
    config = make_config("bert", "masked", 0, next_sentence=True)
    ours = randomized(HEADS["masked"](config))
    save_model(ours, tmp_path)
    theirs = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    batch = inputs(config, "masked")
    with torch.no_grad():
        (tokens, pairs), expected = ours(**batch), theirs(**batch)
    differences = (tokens - expected.prediction_logits)[batch["attention_mask"].bool()], pairs - expected[1]
    for differing in differences:
        assert_parity("bert", type(theirs).__name__, "ours to theirs", differing.abs().max().item())
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
def test_a_configuration_that_no_class_supports_is_refused_with_its_key(family, key, value):
    head = HEADS_OF[family][0]
    config = replace(make_config(family, head, 0), **{key: value}, vocab_size=VOCABULARY)
    if family == "qwen3":
        # Without its norms a Qwen3 is a Llama, which holds it.
        assert layout_for(config, head).model_type == "llama"
        config = replace(config, first_attention_norm=False)
        key = "first_attention_norm"
    with pytest.raises(LayoutError, match=key):
        layout_for(config, head).write_config(config, head)


def test_the_problem_type_is_that_of_transformers(tmp_path):
    config = make_config("modernbert", "classifier", 0, problem_type="multi_label_classification")
    save_model(HEADS["classifier"](config), tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).problem_type == "multi_label_classification"
    assert load_model(tmp_path).config.problem_type == "multi_label_classification"
    # A new head is a new problem.
    assert load_model(tmp_path, head="classifier", id2label={0: "a"}).config.problem_type == (
        "single_label_classification"
    )


@pytest.mark.parametrize("family", [name for name in FAMILIES if "questions" in HEADS_OF[name]])
def test_a_model_of_questions_becomes_one_of_tokens(family, tmp_path):
    """Their class for questions may call the trunk by another name."""
    answerer = randomized(HEADS["questions"](make_config(family, "questions", 0)))
    save_model(answerer, tmp_path)
    tagger = load_model(tmp_path, head="tokens", id2label=LABELS)
    assert set(tagger.newly_initialized) == {"classifier.weight", "classifier.bias"}
    ids = inputs(answerer.config, "questions", None)["input_ids"]
    assert torch.equal(tagger.trunk(ids), answerer.trunk(ids))
