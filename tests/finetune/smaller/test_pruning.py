"""Subnetworks equal masked models, importance equals the derivative of gates, students have the wanted size."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from finetune.smaller.importance import Importance, importance
from finetune.smaller.pruning import keep_important, prune_magnitude
from finetune.smaller.shape import choose_shape, count_parameters, keep_for, spread
from finetune.smaller.subnetwork import Kept, mask, subnetwork
from mini_llm.engine.errors import ConfigError
from mini_llm.model import SequenceClassifier, save_model
from mini_llm.model.positions import rotary_table
from tests.families import make_config
from tests.models import randomized, tokens

PRUNED = [("llama", 1), ("llama", 0), ("qwen3", 0), ("qwen3", 2), ("modernbert", 0), ("modernbert", 1), ("bert", 0)]
PRUNED += [("gpt2", 0)]


def classifier(family, size=0, **changes):
    return randomized(SequenceClassifier(make_config(family, "classifier", size, **changes)))


def scores(config, seed=0):
    """An importance that differs for every part."""
    generator = torch.Generator().manual_seed(seed)
    layers = config.num_hidden_layers
    return Importance(
        torch.rand(layers, config.num_key_value_heads, generator=generator),
        torch.rand(layers, config.intermediate_size, generator=generator),
        torch.rand(config.hidden_size, generator=generator),
    )


@pytest.mark.parametrize(("family", "size"), PRUNED)
def test_removed_heads_and_neurons_equal_masked_ones(family, size):
    model = classifier(family, size)
    kept = keep_important(model.config, scores(model.config), 0.5)
    small = subnetwork(model, kept)
    ids, mask_ = tokens(3, 11), torch.ones(3, 11, dtype=torch.long)
    mask_[1, 7:] = 0
    before = model(ids, mask_)
    mask(model, kept)
    assert (small(ids, mask_) - model(ids, mask_)).abs().max() < 1e-6
    assert (small(ids, mask_) - before).abs().max() > 1e-3
    # Llama and Qwen3 have a key for head_dim, so that heads can go too, if there are several groups.
    can_lose_heads = family in ("llama", "qwen3") and model.config.num_key_value_heads > 1
    assert (small.config.num_attention_heads < model.config.num_attention_heads) == can_lose_heads
    assert small.config.intermediate_size < model.config.intermediate_size


@pytest.mark.parametrize("family", ["qwen3", "modernbert"])
def test_a_pruned_directory_is_smaller_and_transformers_computes_the_same(family, tmp_path):
    model = classifier(family, hidden_size=64, intermediate_size=256)
    small = subnetwork(model, keep_important(model.config, scores(model.config), 0.5))
    save_model(model, tmp_path / "whole")
    save_model(small, tmp_path / "small")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.75 * sizes[0]
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()
    ids = tokens(2, 9)
    with torch.no_grad():
        assert (theirs(ids, torch.ones_like(ids)).logits - small(ids, torch.ones_like(ids))).abs().max() < 1e-5


def test_importance_is_the_derivative_of_a_gate():
    model = classifier("qwen3").double()
    config, ids = model.config, tokens(2, 6)
    labels, everything = torch.tensor([0, 2]), torch.ones(2, 6, dtype=torch.long)
    found = importance(model, [{"input_ids": ids, "attention_mask": everything, "labels": labels}])

    def slope(weight, index):
        """The derivative of the loss with respect to a factor on part of a weight, by central differences."""
        values = []
        with torch.no_grad():
            for factor in (1 + 1e-5, 1 - 1e-5):
                old = weight.clone()
                weight[index] *= factor
                values.append(F.cross_entropy(model(ids, everything), labels))
                weight.copy_(old)
        return abs(float(values[0] - values[1])) / 2e-5

    block = model.trunk.blocks[1]
    per_group = config.num_attention_heads // config.num_key_value_heads * config.head_dim
    columns = slice(per_group, 2 * per_group)
    assert found.groups[1, 1] == pytest.approx(slope(block.attn.o_proj.weight, (slice(None), columns)), rel=1e-4)
    assert found.neurons[1, 5] == pytest.approx(slope(block.mlp.down_proj.weight, (slice(None), 5)), rel=1e-4)
    parts = [model.trunk.embed.weight.T]
    for layer in model.trunk.blocks:
        parts += [layer.attn.o_proj.weight, layer.mlp.down_proj.weight]
    assert found.channels[3] == pytest.approx(sum(slope(part, 3) for part in parts), rel=1e-4)


def test_magnitude_pruning_zeroes_the_smallest_weights_of_each_matrix():
    tensors = {
        "a": torch.arange(1.0, 101).view(10, 10) * 100,
        "b": torch.arange(-50.0, 50).view(4, 25),
        "c": torch.ones(9),
    }
    prune_magnitude(tensors, 0.3)
    assert [int((tensor == 0).sum()) for tensor in tensors.values()] == [30, 30, 0]
    assert tensors["a"][3:].min() == 3100 and tensors["b"][tensors["b"] != 0].abs().min() >= 15


@pytest.mark.parametrize("family", ["qwen3", "modernbert", "gpt2", "bert", "llama"])
@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.6])
def test_a_student_has_the_wanted_size_and_is_part_of_its_teacher(family, share):
    model = classifier(family, hidden_size=64, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    shape = choose_shape(model.config, share, None, None)
    assert 0.2 * share < count_parameters(shape) / count_parameters(model.config) <= share
    assert shape.num_hidden_layers == 2
    found = scores(model.config)
    small = subnetwork(model, keep_for(shape, model.config, found))
    assert sum(p.numel() for p in small.parameters()) == count_parameters(shape)
    channels = found.channels.topk(shape.hidden_size).indices.sort().values
    assert torch.equal(small.trunk.embed.weight, model.trunk.embed.weight[:, channels])
    assert small(tokens(2, 8), torch.ones(2, 8, dtype=torch.long)).isfinite().all()


def test_all_layers_and_channels_of_the_teacher_are_the_teacher():
    model = classifier("modernbert")
    ids = tokens(2, 8)
    small = subnetwork(model, Kept.everything(model.config))
    assert torch.equal(small(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)))


def test_half_a_head_keeps_its_frequencies():
    teacher = make_config("qwen3", "classifier", 0, head_dim=16)
    student = replace(teacher, head_dim=8)
    dims = keep_for(student, teacher, scores(teacher)).dims
    whole, half = (rotary_table(torch.arange(9), size, 10_000.0)[0] for size in (16, 8))
    assert torch.allclose(whole[:, dims], half)


def test_layers_are_spread_over_the_teacher():
    assert spread(6, 3) == [0, 2, 5] and spread(12, 1) == [0] and spread(3, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("layers", "width", "share", "words"),
    [(5, None, 0.3, "larger than its teacher"), (1, 7, 0.3, "multiple of"), (1, None, 1e-4, "student.share")],
)
def test_an_impossible_student_is_a_clear_error(layers, width, share, words):
    with pytest.raises(ConfigError, match=words):
        choose_shape(make_config("bert", "classifier", 0), share, layers, width)
