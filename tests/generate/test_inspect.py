"""`python -m generate inspect` shows what the model computes, for every family."""

import contextlib

import pytest
import torch

from generate.inspection.collect import inspect_text
from generate.inspection.page import page_data
from generate.inspection.states import Recorder, attribute, keys_seen, normalized_entropy
from mini_llm.model import load_model
from tests.families import AUTO, FAMILIES, HEADS_OF, make_config
from tests.generate.inspected_models import CASES, TEXT, make_model, save


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer


@pytest.mark.parametrize(("family", "head"), CASES)
def test_attention_maps_and_predictions_equal_transformers(family, head, tokenizer, tmp_path):
    path = save(tmp_path, tokenizer, family, head)
    seen = inspect_text(load_model(path), tokenizer, TEXT, "class Two" if head == "seq2seq" else None)
    theirs = AUTO[head].from_pretrained(path, attn_implementation="eager").eval()
    batch = {"input_ids": torch.tensor([next(iter(seen.sequences.values()))])}
    if head == "seq2seq":
        batch["decoder_input_ids"] = torch.tensor([seen.sequences["target"]])
    with torch.no_grad():
        output = theirs(**batch, output_attentions=True)
    double = ("encoder_attentions", "decoder_attentions", "cross_attentions")
    names = double if seen.model.config.is_encoder_decoder else ("attentions",)
    assert len(seen.maps) == len(names)
    for maps, name in zip(seen.maps, names, strict=True):
        torch.testing.assert_close(maps.weights, torch.cat(output[name]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(maps.weights.sum(-1), torch.ones(maps.weights.shape[:-1]))
    if head == "classifier":
        probabilities = output.logits[0].softmax(-1)
        torch.testing.assert_close(seen.decision.probabilities, probabilities, atol=1e-5, rtol=1e-4)
        assert seen.decision.labels[0] == probabilities.argmax()
    else:
        best = output.logits[0].softmax(-1).topk(5)
        torch.testing.assert_close(seen.lens.probabilities[-1], best.values, atol=1e-5, rtol=1e-4)
        assert seen.lens.ids[-1].tolist() == best.indices.tolist()


@pytest.mark.parametrize(("family", "size"), [(f, s) for f, sizes in FAMILIES.items() for s in range(len(sizes))])
def test_keys_seen_are_the_ones_with_a_weight(family, size, tokenizer):
    seen = inspect_text(make_model(family, HEADS_OF[family][0], size), tokenizer, TEXT)
    maps, config = seen.maps[0], seen.model.config
    for layer in range(config.num_hidden_layers):
        counted = (maps.weights[layer] > 0).sum(-1)
        assert counted.eq(keys_seen(config, layer, counted.size(-1))).all()


def test_a_sliding_decoder_sees_its_window():
    config = make_config("qwen3", "causal", 0, layer_types=["sliding_attention"] * 2, sliding_window=3)
    assert keys_seen(config, 0, 6).tolist() == [1, 2, 3, 3, 3, 3]


def test_entropy_is_0_for_one_key_and_1_for_uniform_weights():
    seen = torch.arange(1, 6)[None]
    even = (torch.ones(5, 5).tril() / seen.mT).expand(1, 2, 5, 5)
    torch.testing.assert_close(normalized_entropy(even, seen), torch.ones(1, 2))
    assert normalized_entropy(torch.eye(5).expand(1, 2, 5, 5), seen).eq(0).all()
    assert normalized_entropy(torch.ones(1, 2, 1, 1), torch.ones(1, 1)).eq(0).all()


def test_the_expected_token_is_the_next_one_with_the_models_probability(tokenizer):
    model = make_model()
    lens = inspect_text(model, tokenizer, TEXT).lens
    ids = [1, *tokenizer.encode(TEXT)]
    assert lens.expected == [*ids[1:], None]
    expected = model(torch.tensor([ids]))[0].softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
    torch.testing.assert_close(lens.chances[-1, :-1], expected)
    assert lens.chances[:, -1].eq(0).all()


@pytest.mark.parametrize(("family", "head"), [case for case in CASES if case[1] == "classifier"])
def test_attribution_scores_sum_to_the_slope_of_the_log_odds(family, head):
    """Euler: the sum of gradient times input is the derivative with respect to a common factor on all inputs."""
    model = make_model(family, head).double()
    trunks = [model.trunk.encoder, model.trunk.decoder] if model.config.is_encoder_decoder else [model.trunk]
    ids = torch.tensor([[20, 21, 22, 23, 24, 2]])
    recorders = [Recorder(trunk) for trunk in trunks]
    with contextlib.ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder)
        logits = model(ids, torch.ones_like(ids))[0]
    values, scores = attribute(logits, recorders, [2, 0])
    torch.testing.assert_close(values, (logits.softmax(-1)[[2, 0]]).logit())

    def log_odds(factor):
        hooks = [t.blocks[0].register_forward_pre_hook(lambda b, args: (args[0] * factor, *args[1:])) for t in trunks]
        result = model(ids, torch.ones_like(ids))[0].softmax(-1)[[2, 0]].logit()
        for hook in hooks:
            hook.remove()
        return result

    slope = (log_odds(1 + 1e-5) - log_odds(1 - 1e-5)) / 2e-5
    assert slope.abs().min() > 1e-3
    torch.testing.assert_close(sum(s.sum(-1) for s in scores), slope, atol=1e-6, rtol=1e-5)


def test_a_token_the_classifier_does_not_see_has_no_score(tokenizer):
    model = make_model("bert", "classifier")
    torch.nn.init.zeros_(model.trunk.blocks[0].attn.o_proj.weight)
    torch.nn.init.zeros_(model.trunk.blocks[1].attn.o_proj.weight)
    scores = inspect_text(model, tokenizer, TEXT).decision.scores
    assert scores[:, 0].abs().max() > 1e-4 and scores[:, 1:].eq(0).all()


def test_a_model_with_one_output_shows_its_value(tokenizer):
    model = make_model("gpt2", "classifier", id2label={0: "stars"})
    seen = inspect_text(model, tokenizer, TEXT)
    ids = torch.tensor([seen.sequences["text"]])
    torch.testing.assert_close(seen.decision.targets, model(ids)[0])
    assert page_data(seen, tokenizer)["decision"]["single"]


def test_fused_attention_is_restored_afterwards(tokenizer):
    model = make_model()
    inspect_text(model, tokenizer, TEXT)
    assert not any(block.attn.keep_weights or block._forward_hooks for block in model.trunk.blocks)


def test_mask_in_a_text_becomes_the_mask_token(tokenizer):
    seen = inspect_text(make_model("bert", "masked"), tokenizer, "def <mask>(x): [MASK] x")
    ids, lens = seen.sequences["text"], seen.lens
    assert [ids[position] for position in lens.positions] == [tokenizer.mask_id] * 2
    assert tokenizer.decode(ids) == "def(x): x" and lens.expected == [None, None]
    assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
    plain = inspect_text(make_model("bert", "masked"), tokenizer, "def one").lens
    assert plain.expected == [tokenizer.cls_id, *tokenizer.encode("def one"), tokenizer.sep_id]
    assert tokenizer.mask_id not in inspect_text(make_model(), tokenizer, "def <mask>").sequences["text"]


@pytest.mark.parametrize("head", ["causal", "classifier"])
def test_a_long_text_is_truncated_with_a_note(head, tokenizer):
    model = make_model("qwen3", head)
    seen = inspect_text(model, tokenizer, "def one " * 500, max_tokens=10)
    assert len(seen.sequences["text"]) == 10 and seen.sequences["text"][0] == tokenizer.bos_id
    assert "truncated" in seen.notes[0]
    context = inspect_text(model, tokenizer, "def one " * 500, max_tokens=10**6)
    assert len(context.sequences["text"]) == model.config.max_position_embeddings


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_without_a_target_the_model_generates_its_own(family, tokenizer):
    model = make_model(family, "seq2seq")
    seen = inspect_text(model, tokenizer, TEXT, max_tokens=12)
    lens = seen.lens
    assert lens.ids[-1, :, 0].tolist() == lens.expected
    assert seen.sequences["target"] == [model.config.decoder_start_token_id, *lens.expected[:-1]]
    assert seen.maps[2].weights.shape[-2:] == (len(lens.expected), len(seen.sequences["source"]))
    for target in ("", "class Two"):
        given = inspect_text(model, tokenizer, TEXT, target).lens
        assert given.expected == [*tokenizer.encode(target), 2]
