"""A classifier that starts as a bag of tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.encode import collate
from finetune.recipe.bag_start import Bag, Start, can_start_as_bag, start_as_bag
from mini_llm.model import ModelConfig, SequenceClassifier

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
ENCODER = {
    "pad_token_id": 0,
    "causal": False,
    "position": "rotary",
    "classifier_head": "transform",
    "embedding_norm": True,
}


def classifier(**changes) -> SequenceClassifier:
    torch.manual_seed(0)
    settings = {**CONFIG, **ENCODER, "classifier_pooling": "mean", "id2label": {0: "a", 1: "b"}, **changes}
    return SequenceClassifier(ModelConfig(**settings)).eval()


def texts(count: int) -> tuple[list[np.ndarray], torch.Tensor]:
    """Texts of 20 tokens; those of label 1 have more tokens above 25."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, count)
    tokens = [generator.integers(1, 50, 20) for _ in labels]
    for row, label in zip(tokens, labels, strict=True):
        row[:6] = generator.integers(26, 50, 6) if label else generator.integers(1, 26, 6)
    return tokens, torch.eye(2)[labels]


def logits(model: SequenceClassifier, tokens: list[np.ndarray]) -> torch.Tensor:
    batch = collate(tokens, None, 0, 64)
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"])


def without_layers(model: SequenceClassifier) -> SequenceClassifier:
    for block in model.trunk.blocks:
        for layer in (block.attn.o_proj, block.mlp.down_proj):
            torch.nn.init.zeros_(layer.weight)
    return model


def test_a_bag_equals_the_model_without_its_layers():
    model = classifier()
    tokens = [np.arange(1, 1 + n) for n in (1, 5, 17)]
    starts = np.cumsum([0, 1, 5])
    with torch.no_grad():
        found = Bag(model)(torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(starts))
    torch.testing.assert_close(found, logits(without_layers(model), tokens))


def test_a_model_that_starts_as_a_bag_of_tokens_tells_the_classes_apart():
    tokens, targets = texts(600)
    unseen, wanted = tokens[500:], targets[500:].argmax(-1)
    model = classifier()
    note, start = start_as_bag(model, tokens[:500], targets[:500], 0.69, None, 0)
    assert start.bag and "starts as a bag" in note
    assert (logits(model, unseen).argmax(-1) == wanted).float().mean() > 0.8
    found = logits(model, unseen)
    assert torch.equal(found, logits(without_layers(model), unseen)), "at first its layers add nothing"


def test_a_better_model_is_left_as_it_is():
    tokens, targets = texts(200)
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    note, start = start_as_bag(model, tokens, targets, 0.01, None, 0)
    assert not start.bag and "starts as pretrained" in note
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def write_summary(folder: Path, text: str = '{"tokens": 4000000, "parameters": 1200000}') -> Path:
    (folder / "summary.json").write_text(text)
    return folder / "model"


@pytest.mark.parametrize(
    "changes",
    [
        {"classifier_pooling": "cls"},
        {"position": "learned"},
        {"causal": True, "classifier_pooling": "last", "classifier_head": "linear"},
        {"hidden_size": 512},
    ],
)
def test_a_bag_needs_averages_and_tokens_whose_state_is_their_own(tmp_path, changes):
    source = write_summary(tmp_path)
    assert can_start_as_bag(classifier(), source, 100, 300)
    assert not can_start_as_bag(classifier(**changes), source, 100, 300)


def test_the_fit_is_repeatable_and_bounded_by_the_budget(monkeypatch):
    tokens, targets = texts(100)
    monkeypatch.setattr(Bag, "seconds_per_step", lambda *_: 1e-6)  # whatever else the machine does
    one, other = classifier(), classifier()
    note, start = start_as_bag(one, tokens, targets, 9.0, 60.0, 0)
    assert (note, start) == start_as_bag(other, tokens, targets, 9.0, 60.0, 0, start)
    assert torch.equal(one.trunk.embed.weight, other.trunk.embed.weight)
    assert start_as_bag(one, tokens, targets, 9.0, 1e-6, 0) is None


@pytest.mark.parametrize(("seconds", "steps"), [(1e-6, 300), (0.06, 150), (1.0, None)])
def test_a_slow_machine_takes_fewer_steps_and_a_resumed_run_as_many_as_before(monkeypatch, seconds, steps):
    tokens, targets = texts(100)
    monkeypatch.setattr(Bag, "seconds_per_step", lambda *_: seconds)
    found = start_as_bag(classifier(), tokens, targets, 9.0, 60.0, 0)
    assert (found and found[1].bag_steps) == steps
    monkeypatch.setattr(Bag, "seconds_per_step", lambda *_: pytest.fail("timed again"))
    known = Start(bag=True, bag_steps=120)
    assert start_as_bag(classifier(), tokens, targets, 9.0, 60.0, 0, known, lambda _: 7)[1] == known


@pytest.mark.parametrize(
    "summary", ['{"tokens": 4000000000, "parameters": 1200000}', '{"tokens": "many", "parameters": 1200000}', "{"]
)
def test_only_models_of_runs_that_read_few_tokens_start_as_a_bag(tmp_path, summary):
    assert not can_start_as_bag(classifier(), tmp_path / "model", 100, 300)
    assert not can_start_as_bag(classifier(), write_summary(tmp_path, summary), 100, 300)


def test_a_bag_is_for_few_steps_of_enough_texts(tmp_path):
    source = write_summary(tmp_path)
    assert not can_start_as_bag(classifier(), source, 10, 300)
    assert not can_start_as_bag(classifier(), source, 100, 10_000)
