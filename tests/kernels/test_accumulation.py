"""Gradients added to `.grad` where they are made are those that autograd adds up."""

import pytest
import torch

from mini_llm.engine import step
from mini_llm.engine.batch import Share
from mini_llm.engine.kernels import install as layer_kernels
from mini_llm.engine.kernels import linear
from mini_llm.engine.kernels import weight_gradients as accumulation
from mini_llm.engine.kernels.install import use_kernels
from mini_llm.engine.kernels.load import load_kernels
from mini_llm.engine.kernels.weight_gradients import accumulate_in_place
from mini_llm.engine.loss import loss_sums
from mini_llm.engine.step import prepare, train_step
from mini_llm.model import CausalLM
from tests.alive import Alive
from tests.engine.test_loop import accelerator, batches, config
from tests.engine.test_loss import MODELS, distance, make
from tests.model.test_model import decoder

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="this processor or machine has no kernels")
SCALE = 1 / 17


@pytest.fixture(autouse=True)
def no_weight_is_too_small(monkeypatch):
    monkeypatch.setattr(layer_kernels, "SMALL", 0)


def gradients(name: str, in_place: bool, bf16: bool = False, frozen: str = "", every: int = 0) -> dict:
    """Of two micro-batches."""
    model, batch, answers = make(name)
    use_kernels(model)
    for module in model.modules():
        if hasattr(module, "checkpoint_every"):
            module.checkpoint_every = every
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in key)
    if in_place:
        accumulate_in_place(model)
    for turn in range(2):
        given = {key: value.roll(turn, -1) if value.dtype == torch.int64 else value for key, value in batch.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            first, *others = loss_sums(model, given, answers, scale=SCALE)
        (SCALE * first + sum(others)).backward()
    return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("piece", [2**22, 100])
@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_autograd(name, every, piece, monkeypatch):
    monkeypatch.setattr(accumulation, "PIECE", piece)
    expected, found = gradients(name, False, every=every), gradients(name, True, every=every)
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-5 * gradient.norm(), key


@pytest.mark.parametrize("large", [0, 2**19])
@pytest.mark.parametrize("name", MODELS)
def test_in_bf16_they_differ_by_its_rounding(name, large, monkeypatch):
    monkeypatch.setattr(linear, "LARGE", large)
    exact, expected, found = gradients(name, False), gradients(name, False, bf16=True), gradients(name, True, bf16=True)
    assert distance(found, exact) <= 1.2 * distance(expected, exact)


@pytest.mark.parametrize("frozen", ["embed", "attn"])
def test_what_is_frozen_has_none(frozen):
    expected, found = (gradients("untied, bias, scale", in_place, frozen=frozen) for in_place in (False, True))
    assert expected.keys() == found.keys() and all(frozen not in key for key in found)
    assert distance(found, expected) <= 1e-5 * distance(expected)


def test_a_loss_of_another_scale_is_refused():
    model, batch, answers = make("decoder")
    use_kernels(model)
    accumulate_in_place(model)
    (total,) = loss_sums(model, batch, answers, scale=SCALE)
    with pytest.raises(RuntimeError, match="multiplied by 17 times the scale"):
        total.backward()


def test_a_table_that_is_head_too_has_one_gradient_at_a_time(monkeypatch):
    peaks = []
    for in_place in (False, True):
        monkeypatch.setattr(step, "has_kernels", lambda device, in_place=in_place: in_place)
        share = Share(2, 1)
        model = CausalLM(decoder(vocab_size=20_000))
        training = prepare(model, config(), accelerator(share.accumulation))
        given = batches(0, share)
        with Alive() as alive:
            train_step(training, given, 1.0, 1.0)
        peaks.append(alive.peak)
    assert peaks[0] - peaks[1] >= 0.9 * 4 * model.lm_head.weight.numel()
