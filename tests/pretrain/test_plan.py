"""The sizes that a run chooses for itself."""

import pytest
import torch

from mini_llm.engine.config import build_config
from mini_llm.engine.kernels.load import LANES
from pretrain.config import PretrainConfig
from pretrain.plan import sizes as plan
from pretrain.plan_command import DraftTokenizer
from pretrain.warm_start.choose import FEWEST_STEPS, MOST_COUNTED, MOST_STEPS, Beginning

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
    assert width(SMALL, budget="5s") == width(LARGE, budget="5s")


def test_wider_has_a_bound():
    assert width(1000) == width(2000) < 3 * width(LARGE)


def test_heads_are_of_a_size_that_the_kernels_take():
    for budget in (round(10 * 1.1**i) for i in range(100)):
        config = build_config(PretrainConfig, {"budget": f"{budget}s"}, "test")
        made = plan.make_plan(config, None, DraftTokenizer(1024), LARGE, None, 1, torch.device("cpu")).config
        assert made.head_dim % LANES == 0 and made.head_dim * made.num_attention_heads == made.hidden_size


def test_an_encoder_and_a_given_width_are_left_alone():
    assert width(SMALL, model="mlm") == width(LARGE, model="mlm")
    assert width(SMALL, sizes={"hidden_size": 64}) == 64


def compiles(monkeypatch, found: str | None = "/usr/bin/c++", kernels: bool = False, **settings) -> bool:
    monkeypatch.setattr(plan, "compiler", lambda: found)
    monkeypatch.setattr(plan, "has_kernels", lambda device: kernels)
    config = build_config(PretrainConfig, settings, "test")
    return plan.make_plan(config, None, DraftTokenizer(1024), LARGE, None, 1, torch.device("cpu")).compile


def test_blocks_are_compiled_where_the_time_pays_for_it(monkeypatch):
    assert compiles(monkeypatch, budget="10m") and compiles(monkeypatch, budget="4h")
    assert not compiles(monkeypatch, budget="5m")
    # A few steps end before the budget does.
    assert not compiles(monkeypatch, budget="10m", max_steps=5)
    assert compiles(monkeypatch, budget=None) and not compiles(monkeypatch, budget=None, max_steps=5)


def test_blocks_are_not_compiled_where_they_cannot_be(monkeypatch):
    assert not compiles(monkeypatch, None, budget="10m")
    assert not compiles(monkeypatch, budget="10m", runtime={"zero_stage": 1})
    assert not compiles(monkeypatch, kernels=True, budget="10m")
    assert compiles(monkeypatch, None, budget="1m", runtime={"compile": True})
    assert not compiles(monkeypatch, budget="10m", runtime={"compile": False})


def planned(tokens: int = LARGE, pieces: int = 8192, **settings) -> plan.Plan:
    config = build_config(PretrainConfig, settings, "test")
    return plan.make_plan(config, None, DraftTokenizer(pieces), tokens, None, 1, torch.device("cpu"))


def test_more_tokens_are_counted_than_a_short_training_reads():
    def counted(tokens: int = LARGE, **settings) -> int:
        return planned(tokens, **settings).beginning.tokens

    assert counted(SMALL) == SMALL
    assert 1_000_000 < counted(budget="1m") < counted(budget="5m") <= MOST_COUNTED
    assert counted(budget=None, max_steps=2, global_batch_size=8) < 50_000
    assert counted(embeddings="random") == 0


def test_embeddings_of_wide_models_with_many_pieces_begin_at_random():
    wide = {"sizes": {"hidden_size": 768}, "pieces": 50_000}
    assert planned(embeddings="cooccurrence", **wide).beginning == Beginning()
    made = planned(budget="10h", **wide)
    assert made.beginning.bigram_steps == MOST_STEPS and not made.beginning.cooccurrences


def test_a_decoder_that_begins_as_bigrams_has_a_head_of_its_own():
    made = planned(budget="5m")
    assert made.beginning.bigram_steps >= FEWEST_STEPS and not made.config.tie_word_embeddings
    assert ("head", "untied") in [row[:2] for row in made.reasons]
    for settings in (
        {"budget": "5m", "sizes": {"tie_word_embeddings": True}},
        {"budget": "5m", "embeddings": "cooccurrence"},
        {"budget": "5m", "model": "gpt2"},
        {"budget": "5m", "tokens": SMALL},
        {"budget": None, "max_steps": 2, "global_batch_size": 8},
    ):
        made = planned(**settings)
        assert made.beginning.bigram_steps == 0 and made.beginning.cooccurrences and made.config.tie_word_embeddings


def test_an_untied_head_is_for_runs_that_do_not_learn_their_corpus_by_heart():
    def is_fitted(tokens: int, pieces: int = 8192, **settings) -> bool:
        return planned(tokens, pieces, **settings).beginning.bigram_steps > 0

    built_in = 3_500_000
    assert is_fitted(built_in, budget="15s") and not is_fitted(built_in, budget="3m")
    # Read more than once, but too few tokens in all.
    assert is_fitted(SMALL, 1024, budget="6s") and not is_fitted(SMALL, 1024, budget="60s")


def test_a_run_of_given_steps_begins_alike_on_any_number_of_ranks():
    config = build_config(PretrainConfig, {"budget": None, "max_steps": 300, "global_batch_size": 32}, "test")
    made = [
        plan.make_plan(config, None, DraftTokenizer(512), LARGE, None, ranks, torch.device("cpu")) for ranks in (1, 4)
    ]
    assert made[0].beginning == made[1].beginning and made[0].config == made[1].config
    assert made[0].beginning.bigram_steps


def test_an_encoder_begins_as_bigrams_where_it_starts_as_a_decoder():
    made = planned(budget="5m", model="mlm")
    assert made.beginning.bigram_steps and made.config.tie_word_embeddings
    assert not planned(budget="5m", model="mlm", causal_start=False).beginning.bigram_steps
    assert not planned(budget="5m", model="bert").beginning.bigram_steps
