"""Muon, AdamW and the learning-rate schedule."""

from itertools import pairwise

import pytest
import torch

from mini_llm.engine import muon, optim
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.muon import WHOLE, Placement, head_pieces, muon_updates, orthogonalize
from mini_llm.engine.optim import MuonAdamW, make_optimizer, parameter_groups
from mini_llm.engine.schedule import Schedule
from mini_llm.engine.settings import OptimConfig, ScheduleConfig
from mini_llm.model import CausalLM
from tests.models import decoder, tokens


def test_every_parameter_is_in_one_group_and_vectors_have_no_weight_decay():
    model = CausalLM(decoder(tie_word_embeddings=False))
    groups = parameter_groups(model, OptimConfig(), muon=True)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert all((p.dim() == 1) == (group["weight_decay"] == 0) for p in group["params"])
    hidden = next(group for group in groups if "momentum" in group)
    inside = {id(p) for name, p in model.named_parameters() if name.startswith("trunk.blocks.") and p.dim() == 2}
    assert {id(p) for p in hidden["params"]} == inside


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 40)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    given = left * torch.logspace(-1.5, 0, shape[1]) @ right
    values = torch.linalg.svdvals(orthogonalize(given, torch.float32))
    assert values.min() > 0.6 and values.max() < 1.3


def test_heads_are_orthogonalized_separately():
    """Queries and keys (of which there are fewer) in rows, outputs in columns; other matrices as a whole."""
    torch.manual_seed(0)
    config = decoder(num_key_value_heads=2)
    model, heads, size = CausalLM(config), config.num_attention_heads, config.head_dim
    attention, mlp = model.trunk.blocks[0].attn, model.trunk.blocks[0].mlp
    matrices = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.up_proj, mlp.down_proj]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = [m.weight.detach().clone() for m in matrices]
    optimizer = make_optimizer(model, OptimConfig(muon_lr=1.0, weight_decay=0.0), None)
    optimizer.step()
    q, k, v, o, up, down = (a - m.weight.detach() for a, m in zip(before, matrices, strict=True))
    pieces = [*q.split(size), *k.split(size), *v.split(size), *o.split(size, 1), up, down]
    assert len(pieces) == 2 * heads + 2 * 2 + 2
    for piece in pieces:
        scale = piece.square().sum() / min(piece.shape)
        values = torch.linalg.svdvals(piece / scale**0.5)
        assert values.min() > 0.5 and values.max() < 1.5
    for update in (q, k, v, o, up, down):
        assert update.square().sum(1).mean() == pytest.approx(1, abs=0.3)


def test_pieces_are_updated_as_matrices_of_their_own():
    torch.manual_seed(0)
    gradient = torch.randn(32, 24)
    whole = muon_updates([gradient, torch.randn(8, 24)], [(4, 1), WHOLE], torch.float32)[0]
    rows = muon_updates(list(gradient.split(8)), [WHOLE] * 4, torch.float32)
    torch.testing.assert_close(whole, torch.cat(rows))
    whole = muon_updates([gradient], [(1, 4)], torch.float32)[0]
    # Updated alone, each tall piece would have rows of norm 1; here the rows of all four together have norm 1.
    columns = muon_updates(list(gradient.split(6, 1)), [WHOLE] * 4, torch.float32)
    torch.testing.assert_close(whole, torch.cat(columns, 1) / 2)


def test_stacks_hold_equal_shapes_and_a_bounded_number_of_elements(monkeypatch):
    monkeypatch.setattr(muon, "STACKED", 100)
    shapes = [torch.Size(shape) for shape in ((2, 4, 10), (1, 4, 10), (1, 5, 8), (3, 4, 10), (1, 4, 10), (1, 4, 10))]
    assert list(muon.stacks(shapes)) == [[0], [1], [3], [4, 5], [2]]


def test_only_attention_projections_are_cut_into_heads():
    model = CausalLM(decoder())
    names = {name for name, parameter in model.named_parameters() if parameter in head_pieces(model)}
    assert names == {f"trunk.blocks.{i}.attn.{x}_proj.weight" for i in range(len(model.trunk.blocks)) for x in "qkvo"}


def test_muon_agrees_with_torch():
    """One matrix of each shape, three steps, to the precision of bf16, in which torch runs the iteration."""
    torch.manual_seed(0)
    for shape in ((24, 24), (16, 40), (40, 16)):
        ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
        mine = MuonAdamW([{"params": [ours], "lr": 0.1, "momentum": 0.95, "weight_decay": 0.1}])
        reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.1, ns_steps=4)
        for _ in range(3):
            ours.grad = torch.randn(shape)
            theirs.grad = ours.grad.clone()
            mine.step()
            reference.step()
        assert (ours - theirs).abs().max() < 0.02


def test_the_first_muon_update_by_hand():
    """Momentum is 0.05 g, Nesterov 0.0975 g; orthogonalization removes the scale. Decay comes first: 1 - 0.1 x 0.1."""
    torch.manual_seed(0)
    gradient = torch.randn(40, 16)
    p = torch.nn.Parameter(torch.ones(40, 16))
    p.grad = gradient.clone()
    optimizer = MuonAdamW([{"params": [p], "lr": 0.1, "momentum": 0.95, "weight_decay": 0.1}])
    optimizer.step()
    expected = 0.99 - 0.1 * (40 / 16) ** 0.5 * orthogonalize(gradient.T[None], torch.float32)[0].T
    torch.testing.assert_close(p.data, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], 0.05 * gradient)


def test_stacking_does_not_mix_matrices():
    torch.manual_seed(0)
    gradients = [torch.randn(16, 24), torch.randn(24, 16), torch.randn(16, 24)]
    together = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    alone = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameters, batches in ((together, [together]), (alone, [[p] for p in alone])):
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        for group in batches:
            MuonAdamW([{"params": group, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}]).step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_adamw_part_agrees_with_torch():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 7)) for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    mine = MuonAdamW([{"params": [ours], **settings}])
    reference = torch.optim.AdamW([theirs], **settings)
    for _ in range(5):
        ours.grad = torch.randn(5, 7)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_model_learns_a_fixed_batch(name):
    torch.manual_seed(0)
    model = CausalLM(decoder())
    optimizer = make_optimizer(model, OptimConfig(name=name, lr=1e-2), None)
    ids = tokens(4, 17)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.3


@pytest.mark.parametrize("name", ["auto", "muon"])
def test_zero_uses_muon_for_the_same_matrices_in_groups_of_bounded_size(name, monkeypatch):
    model = CausalLM(decoder())
    whole = make_optimizer(model, OptimConfig(name=name), None)
    monkeypatch.setattr(optim, "GATHERED", 3000)
    parts = make_optimizer(model, OptimConfig(name=name), 2)
    assert isinstance(parts, MuonAdamW)
    (expected,) = [group["params"] for group in whole.param_groups if "momentum" in group]
    groups = [group for group in parts.param_groups if "momentum" in group]
    assert [id(p) for group in groups for p in group["params"]] == [id(p) for p in expected]
    for group in groups:
        assert len(group["params"]) == 1 or sum(p.numel() for p in group["params"]) <= 3000
        assert {key: group[key] for key in ("lr", "momentum", "weight_decay")} == {
            "lr": 0.02,
            "momentum": 0.95,
            "weight_decay": 0.01,
        }
    assert len(groups) > 1 and any(len(group["params"]) > 1 for group in groups)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_placement_reads_and_writes_only_its_own_matrix(stage, ranks):
    """Shards as in ZeRO 2 (matrices end to end) and as in ZeRO 3 (each matrix over all ranks, padded)."""
    shapes = [torch.Size((5, 7)), torch.Size((2, 3)), torch.Size((4, 4))]
    matrices = [torch.arange(float(shape.numel())).view(shape) + 100 * i for i, shape in enumerate(shapes, 1)]
    if stage == 3:
        widths = [-(-shape.numel() // ranks) for shape in shapes]
        starts = [sum(widths[:i]) for i in range(3)]
        placements = [Placement(*fields) for fields in zip(shapes, starts, widths, strict=True)]
        shards = torch.zeros(ranks, sum(widths))
    else:
        starts = [0, 35, 41]
        placements = [Placement(*fields) for fields in zip(shapes, starts, strict=True)]
        shards = torch.zeros(ranks, -(-57 // ranks))
    for placement, matrix in zip(placements, matrices, strict=True):
        placement.write(shards, matrix)
    for placement, matrix in zip(placements, matrices, strict=True):
        assert torch.equal(placement.read(shards), matrix)
    assert shards.sum() == sum(matrix.sum() for matrix in matrices)


def test_wsd_warms_up_stays_and_falls_to_zero():
    schedule = Schedule(ScheduleConfig(warmup_steps=10, decay_ratio=0.5), 100)
    factors = [schedule.factor(step) for step in range(100)]
    assert 0 < factors[0] < factors[5] < 1
    assert factors[10:51] == [1.0] * 41
    assert all(a > b for a, b in pairwise(factors[50:]))
    assert 0 < factors[99] < 0.03 and schedule.factor(100) == 0


def test_cosine_schedule_falls_to_its_floor():
    schedule = Schedule(ScheduleConfig(kind="cosine", warmup_steps=10, min_lr_ratio=0.1), 100)
    factors = [schedule.factor(step) for step in range(100)]
    assert 0 < factors[0] < factors[9] <= 1 and factors[10] == pytest.approx(1)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert schedule.factor(100) == pytest.approx(0.1)


@pytest.mark.parametrize("at, total", [(2, 60), (20, 60), (20, 400), (50, 90), (75, 80), (75, 160), (99, 100)])
def test_a_new_total_keeps_past_rates_and_does_not_jump(at, total):
    schedule = Schedule(ScheduleConfig(warmup_steps=5), 100)
    before = [schedule.factor(step) for step in range(at + 1)]
    schedule.retotal(at, total)
    assert [schedule.factor(step) for step in range(at + 1)] == pytest.approx(before)
    after = [schedule.factor(step) for step in range(max(at, 5), total + 1)]
    assert after[-1] == 0 and (after[0] == 1) == (at <= 50)
    steepest = max(a - b for a, b in pairwise(after))
    assert steepest <= max(after[0] / (total - at), 2 / total) + 1e-9
    copy = Schedule(ScheduleConfig(warmup_steps=5), 7)
    copy.load_state(schedule.state())
    assert [copy.factor(step) for step in range(total)] == [schedule.factor(step) for step in range(total)]


def test_a_schedule_of_zero_steps_is_an_error():
    with pytest.raises(ConfigError):
        Schedule(ScheduleConfig(), 0)
