"""The C++ kernels against PyTorch's own operators: results and gradients, masks, lengths, NaN, compilation."""

import pytest
import torch
from torch.nn import functional as F

from mini_llm.engine.kernels import install, linear
from mini_llm.engine.kernels import load as kernels
from mini_llm.engine.kernels.attention import fused_attention, longest_in_kernel
from mini_llm.engine.kernels.install import CPU, use_kernels
from mini_llm.engine.kernels.pointwise import open_gate
from mini_llm.model import HEADS, ModelConfig
from mini_llm.model.attention import Attention
from mini_llm.model.operations import IGNORE_INDEX, PYTORCH

if kernels.load_kernels() is None:
    pytest.skip("no C++ compiler, or no AVX2", allow_module_level=True)

LOCAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7, "local_rope_theta": 500.0}
ARCHITECTURES = {
    "causal": {"causal": True},
    "grouped": {"causal": True, "num_key_value_heads": 2},
    "both directions": {"causal": False},
    "no norm": {"causal": True, "qk_norm": False, "attention_scale": 0.3},
    "learned positions": {"causal": True, "position": "learned"},
    "local": {"causal": False, **LOCAL},
    "local, causal": {"causal": True, **LOCAL},
    "narrow": {"causal": True, "head_dim": 16},
    "odd": {"causal": False, "head_dim": 80, "attention_bias": True},
}


def model_of(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96}
    config = ModelConfig(vocab_size=70, **{**sizes, **changes}, init="normal", initializer_range=0.1)
    model = HEADS["causal" if config.causal else "masked"](config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(autouse=True)
def no_weight_is_too_small(monkeypatch):
    monkeypatch.setattr(install, "SMALL", 0)
    monkeypatch.setattr(linear, "LARGE", 0)


def with_kernels(model: torch.nn.Module) -> torch.nn.Module:
    assert all(module.ops is PYTORCH for module in model.modules() if hasattr(module, "ops"))
    use_kernels(model)
    assert all(module.ops is CPU for module in model.modules() if hasattr(module, "ops"))
    return model


def self_attention(layer: Attention, query, key, value) -> torch.Tensor:
    """Causal, without rotation."""
    norms = layer.q_norm, layer.k_norm
    return fused_attention(query, key, value, *norms, None, None, True, layer.scale, layer.head_dim)


def outcome(model, ids, labels, mask=None, bf16=False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits where a token is real, and all gradients."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(ids, attention_mask=mask).float()
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    F.cross_entropy(logits[real], labels[real]).backward()
    return logits[real].detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("length", [1, 31, 65, 96])
@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_model_with_kernels_is_the_same_model(changes, length):
    model = model_of(**changes)
    ids, labels = torch.randint(70, (2, 3, length))
    expected = outcome(model, ids, labels)
    found = outcome(with_kernels(model), ids, labels)
    assert all(gap(*pair) < 5e-6 for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_not_attended_to(causal):
    model = model_of(causal=causal)
    ids, labels = torch.randint(70, (2, 3, 40))
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1, 25:], mask[2, :9] = 0, 0
    expected = outcome(model, ids, labels, mask)
    found = outcome(with_kernels(model), ids, labels, mask)
    assert all(gap(*pair) < 5e-6 for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_bf16_rounds_no_worse_than_pytorch(changes):
    model = model_of(**changes)
    ids, labels = torch.randint(70, (2, 3, 65))
    if not longest_in_kernel(torch.bfloat16):
        pytest.skip("no AVX512-BF16")
    exact = outcome(model, ids, labels)
    plain = outcome(model, ids, labels, bf16=True)
    found = outcome(with_kernels(model), ids, labels, bf16=True)
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert 0 < gap(ours, right) < 1.1 * gap(theirs, right)


def test_a_row_is_bitwise_the_same_in_any_batch_and_on_any_number_of_threads():
    model = with_kernels(model_of(causal=True))
    ids = torch.randint(70, (5, 33))
    threads = torch.get_num_threads()
    together = model(ids)
    try:
        torch.set_num_threads(1)
        assert torch.equal(together, model(ids))
    finally:
        torch.set_num_threads(threads)
    layer = next(m for m in model.modules() if isinstance(m, Attention))
    inputs = torch.randn(3, 5, 33, 128)
    whole = self_attention(layer, *inputs)
    assert torch.equal(whole[2:3], self_attention(layer, *inputs[:, 2:3].contiguous()))


def test_nan_propagates_to_where_it_is_attended():
    model = with_kernels(model_of(causal=True))
    layer = next(m for m in model.modules() if isinstance(m, Attention))
    query, key, value = torch.randn(3, 1, 40, 128)
    value[0, 20, :32] = float("nan")
    key[0, 30, 64:] = float("nan")
    result = self_attention(layer, query, key, value)[0].view(40, 4, 32)
    assert result[20:, 0].isnan().all() and result[30:, 2:].isnan().all()
    assert not result[:30, 1:].isnan().any() and not result[:, 1].isnan().any()


def test_learned_biases_use_pytorch():
    model = with_kernels(model_of(causal=False, position="relative"))
    ids, labels = torch.randint(70, (2, 3, 20))
    assert outcome(model, ids, labels)[1].isfinite().all()
    assert model.trunk.relative_bias.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_kernels_work_inside_compiled_blocks():
    model = model_of(causal=True)
    ids, labels = torch.randint(70, (2, 3, 32))
    expected = outcome(model, ids, labels)
    use_kernels(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled.parameters = model.parameters
    assert all(gap(*pair) < 5e-6 for pair in zip(outcome(compiled, ids, labels), expected, strict=True))


@pytest.mark.parametrize("size", [3, 16, 70, 4096])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient(size, kind):
    torch.manual_seed(size)
    logits = (8 * torch.randn(37, size)).to(kind)
    labels = torch.randint(size, (37,))
    labels[5:9] = IGNORE_INDEX
    logits[11, labels[11]] = 120.0  # probability 1, all others 0
    logits[12], labels[12], logits[13], labels[13] = 1.0, 0, 2.0, 1  # equal logits: the first is the prediction
    wide = logits.float().requires_grad_()
    expected = F.cross_entropy(wide, labels, reduction="sum")
    expected.backward()
    found, gradient = CPU.cross_entropy_and_gradient(logits.clone(), labels)
    assert torch.allclose(found, expected, rtol=2e-6)
    assert gradient.dtype == kind
    found, hits = CPU.cross_entropy_and_hits(logits, labels)
    assert torch.allclose(found, expected.double(), rtol=2e-6)
    assert hits == (logits.argmax(-1) == labels).sum() > 0
    assert torch.allclose(gradient.float(), wide.grad, rtol=5e-6 if kind == torch.float32 else 2**-8, atol=1e-7)


def test_cross_entropy_propagates_nan_and_refuses_a_label_out_of_range():
    logits, labels = torch.randn(4, 20), torch.tensor([1, 2, 3, 4])
    logits[2, 7] = float("nan")
    found, gradient = CPU.cross_entropy_and_gradient(logits, labels)
    assert found.isnan() and gradient[2].isnan().all() and gradient[[0, 1, 3]].isfinite().all()
    for wrong in (20, -1):
        with pytest.raises(IndexError, match="outside the vocabulary of 20"):
            CPU.cross_entropy_and_gradient(torch.randn(4, 20), torch.tensor([0, 0, wrong, 0]))


def test_overwriting_logits_that_autograd_needs_is_an_error():
    logits = torch.randn(4, 20, requires_grad=True).tanh()  # its gradient is computed from the result
    CPU.cross_entropy_and_gradient(logits.detach(), torch.tensor([1, 2, 3, 4]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_an_unknown_type_is_refused():
    with pytest.raises(TypeError, match="float64"):
        open_gate(*torch.randn(2, 4, 16, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_instructions")
def test_results_are_the_same_with_fewer_processor_instructions():
    assert kernels.load_kernels() is not None
    model, (ids, labels) = model_of(causal=True, num_key_value_heads=2), torch.randint(70, (2, 3, 65))
    expected = outcome(model, ids, labels)
    assert all(gap(*pair) < 5e-6 for pair in zip(outcome(with_kernels(model), ids, labels), expected, strict=True))
    for kind in (torch.float32, torch.bfloat16):
        test_cross_entropy_and_its_gradient(70, kind)
