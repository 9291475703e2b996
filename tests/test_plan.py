"""The sizes that a run chooses for itself."""

import pytest
import torch

from engine.config import build_config
from pretrain import plan
from pretrain.config import PretrainConfig
from pretrain.plan_command import DraftTokenizer

SMALL, LARGE = 400_000, 400_000_000


@pytest.fixture(autouse=True)
def one_machine(monkeypatch):
    monkeypatch.setattr(plan, "matmul_ceiling", lambda *_: 4.3e11)


def width(tokens: int, **settings) -> int:
    config = build_config(PretrainConfig, {"budget": "3m", **settings}, "test")
    made = plan.make_plan(config, None, DraftTokenizer(1024), tokens, None, 1, torch.device("cpu"))
    return made.config.hidden_size


def test_a_decoder_is_wider_where_it_would_read_a_small_corpus_too_often():
    assert width(SMALL) > width(LARGE) == width(10 * LARGE)
    # The same corpus is large for less time.
    assert width(SMALL, budget="20s") == width(LARGE, budget="20s")


def test_wider_has_a_bound():
    assert width(1000) <= 2 * width(LARGE)


def test_an_encoder_and_a_given_width_are_left_alone():
    assert width(SMALL, model="mlm") == width(LARGE, model="mlm")
    assert width(SMALL, sizes={"hidden_size": 64}) == 64
