"""What the literature states about each position scheme, as docs/transformer.md teaches it."""

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention

from mini_llm.model.positions import relative_buckets, rotary_table, rotate, sinusoidal_table

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sinusoids_are_the_formula_of_the_paper_up_to_the_order_of_channels():
    table = sinusoidal_table(torch.arange(512), 64)
    for position, i in ((0, 0), (1, 0), (7, 3), (511, 31)):
        angle = position / 10_000 ** (2 * i / 64)
        assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[position, 32 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_sinusoids_are_bounded_of_one_length_and_all_different():
    table = sinusoidal_table(torch.arange(4096), 64)
    assert table.abs().max() <= 1
    torch.testing.assert_close(table.norm(dim=-1), torch.full((4096,), math.sqrt(32)))
    distances = torch.cdist(table, table) + 100 * torch.eye(4096)
    assert distances.min() > 0.5


@pytest.mark.parametrize("offset", [1, 7, 100])
def test_sinusoids_of_a_later_position_are_one_rotation_of_the_earlier_wherever_that_is(offset):
    table = sinusoidal_table(torch.arange(1000), 64)
    angles = offset / 10_000 ** (torch.arange(32) / 32)
    cos, sin = angles.cos().diag(), angles.sin().diag()
    # sin(a + b) = sin a cos b + cos a sin b; cos(a + b) = cos a cos b - sin a sin b.
    matrix = torch.cat((torch.cat((cos, sin), 1), torch.cat((-sin, cos), 1)))
    torch.testing.assert_close(table[: 1000 - offset] @ matrix.T, table[offset:], atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64), atol=1e-5, rtol=0)


def test_products_of_sinusoids_depend_on_the_distance_alone():
    table = sinusoidal_table(torch.arange(300), 64)
    products = table @ table.T
    for distance in (0, 1, 5, 50):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert (products.diagonal(0)[0] > products[0, 1:]).all()


def test_rotation_keeps_lengths_and_scores_see_the_distance_alone():
    query, key = normal(1, 4, 1, 32), normal(1, 4, 1, 32, seed=1)

    def scores(start: int) -> Tensor:
        """4 heads, all pairs of 20 positions from `start`; one query and one key at every position."""
        table = rotary_table(torch.arange(start, start + 20), 32, 10_000.0)
        queries, keys = (rotate(x.expand(1, 4, 20, 32), table) for x in (query, key))
        torch.testing.assert_close(queries.norm(dim=-1), query.norm(dim=-1).expand(1, 4, 20))
        return queries @ keys.mT

    first = scores(0)
    for distance in (-7, 0, 3):
        diagonal = first.diagonal(distance, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores(1000), first, atol=2e-3, rtol=0)
    assert (first[..., 0, 0] - first[..., 0, 3]).abs().min() > 1e-3


def test_rotation_is_multiplication_by_a_complex_number():
    x, positions = normal(1, 2, 9, 8), torch.arange(9)
    rotated = rotate(x, rotary_table(positions, 8, 100.0))
    angles = torch.outer(positions.double(), 100.0 ** (-torch.arange(4).double() / 4))
    expected = torch.complex(x[..., :4].double(), x[..., 4:].double()) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotated.double(), torch.cat((expected.real, expected.imag), -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scaling", [{"rope_type": "linear", "factor": 4.0}, LLAMA3])
def test_scaled_rotation_is_that_of_transformers(scaling):
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={**scaling, "rope_theta": 500_000.0},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    positions = torch.arange(0, 30_000, 997)
    cos, sin = rotary_table(positions, 128, 500_000.0, scaling)
    angles = torch.outer(positions.float(), frequencies)
    assert factor == 1
    torch.testing.assert_close(cos, torch.cat((angles, angles), -1).cos(), atol=5e-3, rtol=0)
    torch.testing.assert_close(sin, torch.cat((angles, angles), -1).sin(), atol=5e-3, rtol=0)
    cos, sin = rotary_table(torch.tensor([1]), 128, 500_000.0, scaling)
    torch.testing.assert_close(torch.atan2(sin, cos)[0, :64], frequencies, atol=0, rtol=1e-5)


def test_linear_scaling_stretches_positions():
    scaled = rotary_table(torch.arange(0, 400, 4), 32, 10_000.0, {"rope_type": "linear", "factor": 4.0})
    plain = rotary_table(torch.arange(100), 32, 10_000.0)
    for a, b in zip(scaled, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (32, 256), (8, 20), (64, 1000), (10, 33)])
def test_relative_buckets_are_those_of_transformers(bidirectional, buckets, farthest):
    distance = torch.arange(-1500, 1501)[None]
    expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, farthest)
    assert torch.equal(relative_buckets(distance, bidirectional, buckets, farthest), expected)


def test_relative_buckets_are_exact_when_near_and_never_fall_with_the_distance():
    behind = relative_buckets(-torch.arange(200)[None], False, 32, 128)[0]
    assert behind[:16].tolist() == list(range(16))
    assert (behind.diff() >= 0).all() and set(behind.tolist()) == set(range(32))
    assert (behind[128:] == 31).all() and behind[112] < 32
    ahead = relative_buckets(torch.arange(1, 200)[None], True, 32, 128)[0]
    both = relative_buckets(-torch.arange(1, 200)[None], True, 32, 128)[0]
    assert torch.equal(ahead, both + 16) and both[:7].tolist() == list(range(1, 8))
    assert not relative_buckets(torch.arange(1, 200)[None], False, 32, 128).any()
