"""What the literature states about each building block, as docs/transformer.md teaches it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.model import HEADS, CausalLM, KVCache, MaskedLM, ModelConfig, Seq2SeqLM
from mini_llm.model.attention import Attention
from mini_llm.model.layers import MLP, DecoderLayer, EncoderLayer
from mini_llm.model.operations import explicit_attention
from tests.models import VOCABULARY, decoder, encoder, randomized, tokens

LOCAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}


def encoder_decoder(**changes) -> ModelConfig:
    fields = {"is_encoder_decoder": True, "position": "relative", "attention_scale": 1.0, "num_key_value_heads": 4}
    return encoder(**{**fields, "decoder_start_token_id": 3, **changes})


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def attention_calls(model: nn.Module, *inputs: Tensor) -> list[tuple[Attention, tuple, Tensor]]:
    """Every attention of one forward pass: the module, its arguments, its output."""
    calls: list[tuple[Attention, tuple, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, arguments, output: calls.append((module, arguments, output)))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return calls


# Attention


def relative_bias(t: int, s: int) -> Tensor:
    """Added to the scores: one value per head and distance, as relative positions are; causal."""
    distance = torch.arange(s) - torch.arange(t)[:, None]
    return normal(1, 8, 200)[..., distance + 100].masked_fill(distance > 0, float("-inf"))


@pytest.mark.parametrize(
    "kv_heads, t, s, mask, is_causal",
    [
        (8, 48, 48, None, False),
        (8, 48, 48, None, True),
        (2, 48, 48, None, True),
        (1, 48, 48, torch.ones(48, 48, dtype=torch.bool).tril(), False),
        (8, 48, 48, torch.arange(48)[None, None, None] < torch.tensor([48, 20])[:, None, None, None], False),
        (8, 48, 48, relative_bias(48, 48), False),
        (4, 5, 48, None, False),
        (4, 48, 7, (torch.arange(7) < 5)[None, None, None], False),
    ],
    ids=["all", "causal", "grouped", "one key head", "padding", "bias", "cross", "cross, padding"],
)
def test_fused_and_explicit_attention_agree(kv_heads, t, s, mask, is_causal):
    query, key, value = normal(2, 8, t, 32), normal(2, kv_heads, s, 32, seed=1), normal(2, kv_heads, s, 32, seed=2)
    scale = 32**-0.5
    fused = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=kv_heads != 8
    )
    explicit, weights = explicit_attention(query, key, value, mask, is_causal, scale)
    assert largest(explicit, fused) <= 1e-6
    assert largest(weights @ value.repeat_interleave(8 // kv_heads, 1), fused) <= 1e-6


@pytest.mark.parametrize(
    "head, config",
    [
        ("causal", decoder()),
        ("causal", decoder(**LOCAL)),
        ("masked", encoder()),
        ("masked", encoder(**LOCAL)),
        ("seq2seq", encoder_decoder()),
        ("seq2seq", encoder_decoder(position="sinusoidal", attention_scale=None)),
    ],
)
def test_every_attention_of_a_model_is_the_same_either_way(head, config):
    model = randomized(HEADS[head](config))
    ids, mask = tokens(2, 12), torch.arange(12) < torch.tensor([[12], [7]])
    inputs = (ids, tokens(2, 9, seed=1), mask) if head == "seq2seq" else (ids, mask)
    with torch.no_grad():
        calls = attention_calls(model, *inputs)
        assert len(calls) == (6 if head == "seq2seq" else 2)
        for attention, arguments, fused in calls:
            attention.keep_weights = True
            assert largest(attention(*arguments), fused) <= 1e-6


@pytest.mark.parametrize("config", [decoder(), decoder(**LOCAL), decoder(position="relative")])
def test_weights_sum_to_one_and_are_zero_exactly_where_nothing_is_to_be_seen(config):
    model = randomized(CausalLM(config))
    for block in model.trunk.blocks:
        block.attn.keep_weights = True
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    model(tokens(2, 12), mask)
    distance = torch.arange(12) - torch.arange(12)[:, None]
    for block, kind in zip(model.trunk.blocks, config.layer_types, strict=True):
        seen = distance <= 0
        if kind == "sliding_attention":
            seen = seen & (distance > -3)
        seen = (seen & mask[:, None, None]) | (distance == 0)
        weights = block.attn.weights
        assert largest(weights.sum(-1), torch.ones(2, 4, 12)) <= 1e-6
        assert torch.equal(weights != 0, seen.expand_as(weights))


def test_scores_have_variance_d_and_scaled_scores_variance_one():
    for size in (16, 64, 256):
        query, key = normal(20_000, size), normal(20_000, size, seed=1)
        scores = (query * key).sum(-1)
        assert scores.var().item() == pytest.approx(size, rel=0.05)
        assert (scores / math.sqrt(size)).var().item() == pytest.approx(1, rel=0.05)


def test_without_the_scale_the_softmax_is_almost_one_hot_and_passes_almost_no_gradient():
    def look(scale: float) -> tuple[float, float]:
        query = normal(400, 1, 64).requires_grad_()
        weights = (query @ normal(400, 16, 64, seed=1).mT * scale).softmax(-1)
        # d weight_i / d score_i of the softmax is p (1 - p).
        return weights.amax(-1).mean().item(), (weights * (1 - weights)).sum(-1).mean().item()

    (sharp, small), (flat, large) = look(1.0), look(64**-0.5)
    assert sharp > 0.85 and flat < 0.35
    assert small < large / 3


def test_grouped_heads_are_multi_head_attention_with_copied_keys_and_values():
    grouped = randomized(Attention(decoder(), 0))
    full = Attention(decoder(num_key_value_heads=4), 0).eval()
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].view(2, 8, 32).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state)
    x = normal(2, 12, 32)
    assert largest(grouped(x, None, None, True, None), full(x, None, None, True, None)) <= 1e-6


def test_a_cache_holds_two_vectors_per_position_layer_and_key_head():
    def size(config: ModelConfig) -> int:
        cache = KVCache(config, 3, 100, dtype=torch.bfloat16)
        return sum(tensor.nbytes for pair in cache.layers for tensor in pair)

    assert size(decoder()) == 2 * 2 * (3 * 100) * 2 * 8 * 2
    assert size(decoder(num_key_value_heads=4)) == 2 * size(decoder())


def test_the_memory_is_projected_once_while_decoding():
    config = encoder_decoder()
    model = randomized(Seq2SeqLM(config))
    calls = []
    model.trunk.decoder.blocks[0].cross.k_proj.register_forward_hook(lambda *_: calls.append(1))
    memory = model.trunk.encoder(tokens(1, 6))
    cache = KVCache(config, 1, 8)
    with torch.no_grad():
        for step in range(3):
            model(None, tokens(1, 1, seed=step), cache=cache, memory=memory)
    assert len(calls) == 1


def test_an_encoder_without_positions_does_not_know_the_order():
    model = randomized(MaskedLM(encoder(position="learned")))
    ids, order = tokens(2, 10), torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert largest(model(ids[:, order]), model(ids)[:, order]) > 0.1
    nn.init.zeros_(model.trunk.embed_position.weight)
    torch.testing.assert_close(model(ids[:, order]), model(ids)[:, order], atol=1e-5, rtol=1e-5)


def test_qk_norm_makes_the_weights_blind_to_the_size_of_queries():
    def weights(qk_norm: bool, factor: float) -> Tensor:
        attention = randomized(Attention(decoder(qk_norm=qk_norm), 0))
        attention.keep_weights = True
        attention.q_proj.weight.data *= factor
        attention(normal(2, 12, 32), None, None, True, None)
        return attention.weights

    assert largest(weights(True, 1), weights(True, 1000)) <= 1e-4
    assert largest(weights(False, 1), weights(False, 1000)) > 0.1


# Norms and residuals


def test_norms_are_their_formulas():
    x, weight, bias = normal(4, 7, 32), normal(32, seed=1), normal(32, seed=2)
    rms, layer = (
        DecoderLayer(decoder(norm=norm, norm_bias=True, norm_eps=1e-5), 0).attn_norm
        for norm in ("rmsnorm", "layernorm")
    )
    rms.load_state_dict({"weight": weight})
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert largest(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight) <= 1e-5
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    assert largest(layer(x), expected) <= 1e-5
    # Both forget the scale of their input; only LayerNorm forgets its mean.
    assert largest(rms(100 * x), rms(x)) <= 1e-3 and largest(layer(100 * x), layer(x)) <= 1e-3
    assert largest(layer(x + 5), layer(x)) <= 1e-4 and largest(rms(x + 5), rms(x)) > 0.1


def test_pre_norm_blocks_begin_as_the_identity_and_pass_the_gradient_unchanged():
    model = CausalLM(decoder(num_hidden_layers=24))
    x, gradient = normal(2, 12, 32).requires_grad_(), normal(2, 12, 32, seed=1)
    y = x
    for block in model.trunk.blocks:
        y = block(y, None, None, True)
    y.backward(gradient)
    assert torch.equal(y, x) and torch.equal(x.grad, gradient)


def test_post_norm_divides_the_gradient_of_the_residual_by_the_square_root_of_two():
    x, added, gradient = (normal(200, 256, seed=seed) for seed in range(3))
    for place, expected in (("pre", 1.0), ("post", math.sqrt(0.5))):
        layer = EncoderLayer(encoder(hidden_size=256, norm_place=place, first_attention_norm=True), 0)
        # Only the first sum and its norm: attention adds a constant, the MLP and its norm change nothing.
        layer.attn.forward = lambda *_: added
        layer.mlp.forward = torch.zeros_like
        layer.mlp_norm = nn.Identity()
        source = x.clone().requires_grad_()
        layer(source, None).backward(gradient)
        assert (source.grad.norm() / gradient.norm()).item() == pytest.approx(expected, rel=0.02)


def test_post_norm_takes_the_part_along_its_input_out_of_the_gradient():
    config = encoder(norm_place="post", first_attention_norm=True)
    block = MaskedLM(config).trunk.blocks[0]
    x = normal(2, 12, 32).requires_grad_()
    block(x, None).backward(normal(2, 12, 32, seed=1))
    assert (x.grad * x).sum(-1).abs().max() <= 1e-4 < normal(2, 12, 32, seed=1).norm(dim=-1).min()
    assert x.grad.sum(-1).abs().max() <= 1e-4


# Activations and the MLP


def test_activations_are_their_formulas_and_the_tanh_form_of_gelu_is_close():
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    exact = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    form = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    outputs = {}
    for name in ("relu", "gelu", "gelu_new", "silu"):
        outputs[name] = MLP(decoder(hidden_act=name)).act(x)
    torch.testing.assert_close(outputs["relu"], x.clamp(min=0))
    torch.testing.assert_close(outputs["gelu"], exact)
    torch.testing.assert_close(outputs["gelu_new"], form)
    torch.testing.assert_close(outputs["silu"], x / (1 + (-x).exp()))
    assert 1e-4 < largest(outputs["gelu"], outputs["gelu_new"]) < 5e-4


@pytest.mark.parametrize("gated", [False, True])
def test_the_mlp_is_its_formula(gated):
    mlp = randomized(MLP(decoder(gated_mlp=gated, mlp_bias=True, hidden_act="gelu")))
    x = normal(2, 12, 32)
    up = x @ mlp.up_proj.weight.T + mlp.up_proj.bias
    inner = F.gelu(x @ mlp.gate_proj.weight.T + mlp.gate_proj.bias) * up if gated else F.gelu(up)
    assert largest(mlp(x), inner @ mlp.down_proj.weight.T + mlp.down_proj.bias) <= 1e-5


def test_a_gated_mlp_of_eight_thirds_has_the_weights_of_a_plain_one_of_four():
    sizes = {}
    for gated in (True, False):
        config = ModelConfig(64, 768, 1, 12, 64, causal=True, gated_mlp=gated)
        sizes[gated] = sum(p.numel() for p in MLP(config).parameters())
    assert sizes[True] == sizes[False] == 3 * 768 * 2048


# Embeddings, heads, initialisation, dropout


def test_the_first_loss_is_ln_v_for_every_kind_of_model():
    torch.manual_seed(0)
    for init in ("identity", "normal", "scaled"):
        for head, config in (("causal", decoder()), ("masked", encoder()), ("seq2seq", encoder_decoder())):
            model = HEADS[head](replace(config, init=init)).eval()
            labels = tokens(8, 24, seed=1).flatten()
            inputs = (tokens(8, 24), tokens(8, 24, seed=2)) if head == "seq2seq" else (tokens(8, 24),)
            loss = F.cross_entropy(model(*inputs).flatten(0, 1), labels)
            assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.1), (init, head)


def test_initialisation_has_the_deviations_that_the_papers_state():
    def deviation(init: str, name: str, **changes) -> float:
        config = decoder(hidden_size=128, num_hidden_layers=8, init=init, tie_word_embeddings=False, **changes)
        return CausalLM(config).get_parameter(name).std().item()

    torch.manual_seed(0)
    block = "trunk.blocks.0."
    for name in ("attn.o_proj.weight", "mlp.down_proj.weight"):
        assert deviation("identity", block + name) == 0
    assert deviation("identity", block + "attn.q_proj.weight") == pytest.approx(128**-0.5, rel=0.05)
    assert deviation("normal", block + "mlp.down_proj.weight") == pytest.approx(0.02, rel=0.05)
    assert deviation("scaled", block + "mlp.down_proj.weight") == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    glorot = math.sqrt(2 / (128 + 384))
    assert deviation("xavier", block + "mlp.up_proj.weight", intermediate_size=384) == pytest.approx(glorot, rel=0.05)
    assert deviation("fan_in", block + "attn.q_proj.weight") == pytest.approx((128 * 32) ** -0.5, rel=0.05)
    assert deviation("fan_in", "trunk.embed.weight") == pytest.approx(1, rel=0.05)


def test_scaled_embeddings_are_as_large_as_the_positions_added_to_them():
    torch.manual_seed(0)
    config = decoder(hidden_size=128, init="xavier", embedding_scale=math.sqrt(128), position="sinusoidal")
    trunk = CausalLM(config).trunk
    assert (trunk.embed.weight * config.embedding_scale).std().item() == pytest.approx(1, rel=0.05)
    positions = trunk._embed(tokens(1, 32), None, torch.arange(32)) - trunk.embed(tokens(1, 32)) * math.sqrt(128)
    assert positions.square().mean().item() == pytest.approx(0.5, rel=1e-4)


def test_the_logit_scale_undoes_the_length_of_unit_embeddings():
    torch.manual_seed(0)
    scaled, plain = (decoder(hidden_size=128, init="fan_in", logit_scale=scale) for scale in (128**-0.5, 1.0))
    ids = tokens(4, 32)
    # The logit of a token at its own place is the length of its embedding, and larger.
    others = torch.ones(4, 32, VOCABULARY, dtype=torch.bool).scatter(-1, ids[..., None], False)
    assert CausalLM(plain)(ids)[others].std().item() == pytest.approx(math.sqrt(128), rel=0.2)
    assert CausalLM(scaled)(ids)[others].std().item() == pytest.approx(1, rel=0.2)


def test_token_types_are_one_more_embedding():
    model = randomized(MaskedLM(encoder(type_vocab_size=2, position="learned")))
    ids, types = tokens(1, 10), (torch.arange(10) > 4).long()[None]
    assert torch.equal(model(ids), model(ids, token_type_ids=torch.zeros_like(types)))
    positions = torch.arange(10)
    difference = model.trunk._embed(ids, types, positions) - model.trunk._embed(ids, None, positions)
    first, second = model.trunk.embed_type.weight
    torch.testing.assert_close(difference[0, 5:], (second - first).expand(5, -1))
    assert not difference[0, :5].any()


def test_dropout_is_off_in_evaluation_and_keeps_the_mean_in_training():
    model = randomized(CausalLM(decoder(dropout=0.5)))
    ids = tokens(2, 12)
    assert torch.equal(model(ids), model(ids))
    assert torch.equal(model(ids), randomized(CausalLM(decoder()))(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    dropped = model.trunk.dropout(torch.ones(1000, 100))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
