"""Properties of the Transformer that the literature promises, on tiny random models."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mini_llm.engine.run.machine import compiler
from mini_llm.model import HEADS, CausalLM, KVCache, MaskedLM, ModelConfig, SequenceClassifier
from mini_llm.model.layers import DecoderLayer
from mini_llm.model.positions import rotary_table, rotate
from tests.models import VOCABULARY, decoder, encoder, randomized, tokens


@pytest.mark.parametrize("window", [None, 3])
def test_a_decoder_does_not_see_the_future(window):
    kinds = ["sliding_attention", "full_attention"] if window else None
    model = randomized(CausalLM(decoder(layer_types=kinds, sliding_window=window)))
    ids = tokens(2, 12)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_an_encoder_that_is_trained_as_a_decoder_does_not_see_the_future():
    model = randomized(MaskedLM(encoder()))
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    assert torch.equal(model(ids, causal=True)[:, :7], model(changed, causal=True)[:, :7])


def test_an_encoder_sees_both_sides():
    model = randomized(MaskedLM(encoder()))
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    difference = (model(ids) - model(changed)).abs().amax(-1)
    assert (difference > 1e-4).all()


def test_a_sliding_window_hides_what_is_farther():
    config = decoder(num_hidden_layers=1, layer_types=["sliding_attention"], sliding_window=3)
    model = randomized(CausalLM(config))
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % VOCABULARY
    difference = (model(ids) - model(changed)).abs().amax(-1)[0]
    assert (difference[4:7] > 1e-4).all()
    assert torch.equal(difference[7:], torch.zeros(5))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cls, config", [(CausalLM, decoder()), (MaskedLM, encoder())])
def test_padding_changes_nothing(cls, config, side):
    model = randomized(cls(config))
    ids = tokens(1, 9)
    padding, ones = torch.full((1, 5), 3), torch.ones(1, 9, dtype=torch.long)
    parts = [padding, ids] if side == "left" else [ids, padding]
    masks = [0 * padding, ones] if side == "left" else [ones, 0 * padding]
    logits = model(torch.cat(parts, 1), torch.cat(masks, 1))
    kept = logits[:, 5:] if side == "left" else logits[:, :9]
    torch.testing.assert_close(kept, model(ids), atol=2e-5, rtol=1e-5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    "config", [decoder(), encoder(), encoder(layer_types=["sliding_attention"] * 2, sliding_window=2)]
)
def test_a_row_of_padding_alone_is_finite(config):
    model = randomized((CausalLM if config.causal else MaskedLM)(config))
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1] = 0
    for keep_weights in (False, True):  # both implementations of attention
        for layer in model.trunk.blocks:
            layer.attn.keep_weights = keep_weights
        logits = model(ids, mask)
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(logits[:1], model(ids[:1]), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [decoder(), encoder(), encoder(classifier_pooling="cls")])
def test_a_classifier_ignores_padding(config):
    model = randomized(SequenceClassifier(replace(config, id2label={0: "a", 1: "b", 2: "c"})))
    ids = tokens(1, 9)
    padded = torch.cat([ids, torch.full((1, 6), 3)], 1)
    mask = torch.cat([torch.ones(1, 9), torch.zeros(1, 6)], 1).long()
    torch.testing.assert_close(model(padded, mask), model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 6], [11, 1]])
@pytest.mark.parametrize("window", [None, 4])
def test_cached_equals_uncached(pieces, window):
    kinds = ["sliding_attention", "full_attention"] if window else None
    config = decoder(layer_types=kinds, sliding_window=window)
    model = randomized(CausalLM(config))
    ids = tokens(2, 12)
    cache = KVCache(config, 2, 16)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in ids.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-5, rtol=1e-5)
    assert cache.length == 12


def test_a_full_cache_is_an_error():
    config = decoder()
    model = randomized(CausalLM(config))
    with pytest.raises(ValueError, match="holds 4 positions"), torch.no_grad():
        model(tokens(1, 5), cache=KVCache(config, 1, 4))


@pytest.mark.parametrize("cls, config", [(CausalLM, decoder()), (MaskedLM, encoder())])
def test_the_first_loss_is_that_of_a_uniform_guess(cls, config):
    torch.manual_seed(0)
    logits = cls(config)(tokens(4, 32))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens(4, 32, seed=1).flatten())
    assert abs(loss.item() - math.log(VOCABULARY)) < 0.1


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_blocks_give_the_same_gradients(every):
    model = randomized(CausalLM(decoder(dropout=0.1))).train()
    gradients = []
    for checkpoint_every in (0, every):
        model.trunk.checkpoint_every = checkpoint_every
        model.zero_grad()
        torch.manual_seed(1)
        model(tokens(2, 12)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_masked_positions_alone_give_the_same_logits():
    model = randomized(MaskedLM(encoder()))
    ids, positions = tokens(3, 10), torch.tensor([[1, 4], [0, 9], [2, 3]])
    expected = model(ids).gather(1, positions[..., None].expand(-1, -1, VOCABULARY))
    torch.testing.assert_close(model(ids, positions=positions), expected)


def test_tied_weights_are_one_parameter():
    model = CausalLM(decoder())
    assert model.lm_head.weight is model.trunk.embed.weight
    untied = CausalLM(decoder(tie_word_embeddings=False))
    assert untied.lm_head.weight is not untied.trunk.embed.weight


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8)

    def score(m: int, n: int) -> float:
        at = [rotate(x, rotary_table(torch.tensor([p]), 8, 10_000.0)) for x, p in ((query, m), (key, n))]
        return (at[0] * at[1]).sum().item()

    assert score(3, 1) == pytest.approx(score(20, 18), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_attention_heads": 3}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_window"),
    ],
)
def test_inconsistent_sizes_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        decoder(**changes)


@pytest.mark.parametrize("changes", [{"causal": True}, {"causal": True, "num_key_value_heads": 2}, {"causal": False}])
def test_short_attention_in_bf16_rounds_no_worse_than_the_fused_kernel(changes, monkeypatch):
    """Compares the gradients of both with fp32."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
    config = ModelConfig(vocab_size=96, **sizes, init="normal", initializer_range=0.1, **changes)
    model = HEADS["causal" if config.causal else "masked"](config)
    ids, labels = torch.randint(96, (2, 4, 64))

    def gradient(short: int, precise: bool = False) -> torch.Tensor:
        monkeypatch.setattr("mini_llm.model.operations.SHORT", short)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            logits = model(ids)
        F.cross_entropy(logits.float().flatten(0, 1), labels.flatten()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact = gradient(0, precise=True)
    fused, short = ((gradient(keys) - exact).norm() / exact.norm() for keys in (0, 64))
    assert 0 < short < 1.2 * fused
    assert short != fused


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_layer_in_bf16_has_the_gradients_of_the_same_layer():
    torch.manual_seed(0)
    layer = DecoderLayer(decoder(hidden_size=128, num_attention_heads=2, num_key_value_heads=2, head_dim=64), 0)
    rotary = rotary_table(torch.arange(256), 64, 10_000.0)
    x = torch.randn(4, 256, 128)
    gradients = []
    for compiled in (False, True):
        if compiled:
            layer.compile()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x, rotary, None, True)
        (y * x.cos()).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    for (name, _), expected, found in zip(layer.named_parameters(), *gradients, strict=True):
        assert found.isfinite().all(), name
        assert (found - expected).norm() <= 0.03 * expected.norm(), name
