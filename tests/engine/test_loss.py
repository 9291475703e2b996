"""Logits computed in chunks: the loss, its gradients and the scores equal those of full logits."""

import pytest
import torch
import torch.utils._python_dispatch
from accelerate import Accelerator

from mini_llm.engine import loss
from mini_llm.engine.batch import IGNORE_INDEX
from mini_llm.engine.evaluate import evaluate_loss, score_sums
from mini_llm.engine.loss import cross_entropy_sum, loss_sums
from mini_llm.model import HEADS, ModelConfig
from mini_llm.model.norms import RMSNorm
from mini_llm.model.operations import cross_entropy_and_gradient

VOCABULARY, ROWS, LENGTH = 50, 3, 11

MODELS = {
    "decoder": {"causal": True},
    "untied, bias, scale": {
        "causal": True,
        "tie_word_embeddings": False,
        "decoder_bias": True,
        "logit_scale": 0.5,
    },
    "encoder": {"causal": False},
    "encoder, untied": {"causal": False, "tie_word_embeddings": False, "decoder_bias": True, "head_bias": True},
    "next sentence": {"causal": False, "next_sentence": True, "decoder_bias": True},
    "encoder-decoder": {"causal": False, "is_encoder_decoder": True, "logit_scale": 0.25},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 7 positions, which do not divide the 33 of a batch."""
    monkeypatch.setattr(loss, "MIN_ROWS", 7)
    monkeypatch.setattr(loss, "ROWS_PER_CHANNEL", 0)
    monkeypatch.setattr(loss, "CHUNK", {"cpu": 1, "cuda": 1})


def make(name: str) -> tuple[torch.nn.Module, dict, list[torch.Tensor]]:
    """A model, a batch without labels, and its labels, of which some do not count."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        init="normal",
        initializer_range=0.3,
        **MODELS[name],
    )
    kind = "seq2seq" if config.is_encoder_decoder else "causal" if config.causal else "masked"
    batch = {"input_ids": torch.randint(VOCABULARY, (ROWS, LENGTH))}
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH))
    labels[:, ::4] = IGNORE_INDEX
    labels[1] = IGNORE_INDEX
    answers = [labels]
    if kind == "masked":
        batch["positions"] = torch.arange(LENGTH - 4).expand(ROWS, -1)
        answers = [labels[:, 4:]]
    if kind == "seq2seq":
        batch["decoder_input_ids"] = torch.randint(VOCABULARY, (ROWS, LENGTH))
    if config.next_sentence:
        answers.append(torch.randint(2, (ROWS,)))
    return HEADS[kind](config).train(), batch, answers


def whole(model: torch.nn.Module, batch: dict, answers: list[torch.Tensor]) -> list[torch.Tensor]:
    outputs = model(**batch)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [cross_entropy_sum(*pair) for pair in zip(outputs, answers, strict=True)]


def gradients(losses: list[torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    # Scaled as the loop does, by what is known only after the forward pass of other ranks.
    (sum(losses) / 17).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor] | None = None) -> float:
    """Norm of the difference over all parameters; of `ours` itself when there is nothing to compare with."""
    parts = [value if theirs is None else value - theirs[key] for key, value in ours.items()]
    return float(torch.stack([part.norm() for part in parts]).norm())


@pytest.mark.parametrize("recompute", [False, True], ids=["at once", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_equal_those_of_full_logits(name, recompute, monkeypatch):
    monkeypatch.setattr(loss, "_in_fp16", lambda hidden: recompute)
    model, batch, answers = make(name)
    expected, found = whole(model, batch, answers), loss_sums(model, batch, answers)
    for one, other in zip(expected, found, strict=True):
        assert other.item() == pytest.approx(one.item(), rel=1e-6)
    wanted, seen = gradients(expected, model), gradients(found, model)
    assert wanted.keys() == seen.keys()
    for key, gradient in wanted.items():
        assert (seen[key] - gradient).norm() <= 1e-5 * gradient.norm(), key
    assert distance(seen, wanted) <= 1e-6 * distance(wanted)


@pytest.mark.parametrize("name", MODELS)
def test_in_bf16_they_differ_by_its_rounding(name):
    model, batch, answers = make(name)
    exact = gradients(whole(model, batch, answers), model)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = whole(model, batch, answers), loss_sums(model, batch, answers)
    for one, other in zip(expected, found, strict=True):
        assert other.item() == pytest.approx(one.item(), rel=1e-4)
    wanted, seen = gradients(expected, model), gradients(found, model)
    assert distance(seen, exact) <= 1.2 * distance(wanted, exact)


def test_full_logits_are_never_materialized():
    """No tensor of (positions, vocabulary) is alive in either pass, only chunks."""
    model, batch, answers = make("decoder")
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == VOCABULARY:
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        sum(whole(model, batch, answers)).backward()
    assert largest == ROWS * LENGTH * VOCABULARY
    largest = 0
    with Watch():
        sum(loss_sums(model, batch, answers)).backward()
    # The transposed matrix of the head has the vocabulary last too.
    assert largest == 16 * VOCABULARY


@pytest.mark.parametrize("name", MODELS)
def test_chunked_evaluation_equals_full_logits(name):
    model, batch, answers = make(name)
    with torch.no_grad():
        outputs = model(**batch)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sums = [score_sums(*pair) for pair in zip(outputs, answers, strict=True)]
    labels = dict(zip(("labels", "next_sentence_label"), answers, strict=False))
    found = evaluate_loss(model, [batch | labels], Accelerator(cpu=True))
    assert found["loss"] == pytest.approx(sum(float(total / count) for total, _, count in sums), rel=1e-6)
    assert found["accuracy"] == float(sums[0][1] / sums[0][2]) and found["count"] == float(sums[0][2])


def test_the_loss_from_the_softmax_equals_the_loss_from_the_logits():
    """Ignored labels do not count, and a label of zero probability still has its loss."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(6, 11, generator=generator)).requires_grad_()
    labels = torch.tensor([3, IGNORE_INDEX, 0, 10, IGNORE_INDEX, 7])
    with torch.no_grad():
        logits[3, 2] = 500.0
    expected = cross_entropy_sum(logits, labels)
    expected.backward()
    loss, gradient = cross_entropy_and_gradient(logits.detach(), labels)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, logits.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_on_a_cpu_has_the_gradients_of_its_definition(dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((5, 3, 32), (32,)))
    given = torch.randn(5, 3, 32, generator=generator, dtype=dtype)
    norm = RMSNorm(32, eps=1e-6, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    with torch.no_grad():
        norm.weight.copy_(weight)
    ours = torch.autograd.grad(norm(x.requires_grad_()), (x, norm.weight), given)
    x, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    y = weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    bounds = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
    for found, expected in zip(ours, torch.autograd.grad(y, (x, weight), given.double()), strict=True):
        assert (found.double() - expected).abs().max() <= bounds[dtype] * expected.abs().max()
