"""Default sizes of a run, chosen from its budget."""

import pytest
import torch

from mini_llm.engine.config import build_config
from mini_llm.engine.kernels.load import LANES
from pretrain.config import PretrainConfig
from pretrain.plan import compiling, speed
from pretrain.plan import sizes as plan
from pretrain.plan.draft import DraftTokenizer
from pretrain.warm_start.choose import FEWEST_STEPS, MOST_COUNTED, MOST_STEPS, WarmStart

SMALL, LARGE = 400_000, 400_000_000


@pytest.fixture(autouse=True)
def one_machine(monkeypatch):
    monkeypatch.setattr(speed, "matmul_ceiling", lambda *_: 4.3e11)


def width(tokens: int, **settings) -> int:
    config = build_config(PretrainConfig, {"budget": "3m", **settings}, "test")
    made = plan.make_plan(config, None, DraftTokenizer(1024), tokens, None, 1, torch.device("cpu"))
    return made.config.hidden_size


def test_a_decoder_is_wider_when_it_would_repeat_a_small_corpus_too_often():
    assert width(SMALL) > width(LARGE) == width(10 * LARGE)
    # For a shorter run the same corpus is large.
    assert width(SMALL, budget="5s") == width(LARGE, budget="5s")


def test_the_widening_has_a_limit():
    assert width(1000) == width(2000) < 3 * width(LARGE)


def test_head_sizes_are_ones_that_the_kernels_support():
    for budget in (round(10 * 1.1**i) for i in range(100)):
        config = build_config(PretrainConfig, {"budget": f"{budget}s"}, "test")
        made = plan.make_plan(config, None, DraftTokenizer(1024), LARGE, None, 1, torch.device("cpu")).config
        assert made.head_dim % LANES == 0 and made.head_dim * made.num_attention_heads == made.hidden_size


def test_encoders_and_given_widths_are_not_widened():
    assert width(SMALL, model="mlm") == width(LARGE, model="mlm")
    assert width(SMALL, sizes={"hidden_size": 64}) == 64


def compiles(monkeypatch, found: str | None = "/usr/bin/c++", kernels: bool = False, **settings) -> bool:
    monkeypatch.setattr(compiling, "compiler", lambda: found)
    monkeypatch.setattr(compiling, "has_kernels", lambda device: kernels)
    config = build_config(PretrainConfig, settings, "test")
    return plan.make_plan(config, None, DraftTokenizer(1024), LARGE, None, 1, torch.device("cpu")).compile


def test_blocks_are_compiled_when_it_pays_off(monkeypatch):
    assert compiles(monkeypatch, budget="10m") and compiles(monkeypatch, budget="4h")
    assert not compiles(monkeypatch, budget="5m")
    # These steps take less time than the budget.
    assert not compiles(monkeypatch, budget="10m", max_steps=5)
    assert compiles(monkeypatch, budget=None) and not compiles(monkeypatch, budget=None, max_steps=5)


def test_blocks_are_not_compiled_when_that_is_impossible_or_useless(monkeypatch):
    assert not compiles(monkeypatch, None, budget="10m")
    assert not compiles(monkeypatch, budget="10m", runtime={"zero_stage": 1})
    assert not compiles(monkeypatch, kernels=True, budget="10m")
    assert compiles(monkeypatch, None, budget="1m", runtime={"compile": True})
    assert not compiles(monkeypatch, budget="10m", runtime={"compile": False})


def planned(tokens: int = LARGE, vocabulary: int = 8192, **settings) -> plan.Plan:
    config = build_config(PretrainConfig, settings, "test")
    return plan.make_plan(config, None, DraftTokenizer(vocabulary), tokens, None, 1, torch.device("cpu"))


def test_bigrams_are_counted_over_more_tokens_than_a_short_run_reads():
    def counted(tokens: int = LARGE, **settings) -> int:
        return planned(tokens, **settings).warm_start.tokens

    assert counted(SMALL) == SMALL
    assert 1_000_000 < counted(budget="1m") < counted(budget="5m") <= MOST_COUNTED
    assert counted(budget=None, max_steps=2, global_batch_size=8) < 50_000
    assert counted(init_embeddings="random") == 0


def test_wide_models_with_large_vocabularies_start_with_random_embeddings():
    wide = {"sizes": {"hidden_size": 768}, "vocabulary": 50_000}
    assert planned(init_embeddings="cooccurrence", **wide).warm_start == WarmStart()
    made = planned(budget="10h", **wide)
    assert made.warm_start.bigram_steps == MOST_STEPS and not made.warm_start.cooccurrence


def test_a_decoder_started_from_bigrams_has_an_untied_head():
    made = planned(budget="5m")
    assert made.warm_start.bigram_steps >= FEWEST_STEPS and not made.config.tie_word_embeddings
    assert ("head", "untied") in [row[:2] for row in made.reasons]
    for settings in (
        {"budget": "5m", "sizes": {"tie_word_embeddings": True}},
        {"budget": "5m", "init_embeddings": "cooccurrence"},
        {"budget": "5m", "model": "gpt2"},
        {"budget": "5m", "tokens": SMALL},
        {"budget": None, "max_steps": 2, "global_batch_size": 8},
    ):
        made = planned(**settings)
        assert made.warm_start.bigram_steps == 0 and made.warm_start.cooccurrence and made.config.tie_word_embeddings


def test_runs_that_would_memorize_their_corpus_do_not_start_from_bigrams():
    def is_fitted(tokens: int, vocabulary: int = 8192, **settings) -> bool:
        return planned(tokens, vocabulary, **settings).warm_start.bigram_steps > 0

    built_in = 3_500_000
    assert is_fitted(built_in, budget="15s") and not is_fitted(built_in, budget="3m")
    # More than one epoch is allowed when the run is this short.
    assert is_fitted(SMALL, 1024, budget="6s") and not is_fitted(SMALL, 1024, budget="60s")


def test_a_run_with_given_steps_starts_the_same_on_any_number_of_ranks():
    config = build_config(PretrainConfig, {"budget": None, "max_steps": 300, "global_batch_size": 32}, "test")
    made = [
        plan.make_plan(config, None, DraftTokenizer(512), LARGE, None, ranks, torch.device("cpu")) for ranks in (1, 4)
    ]
    assert made[0].warm_start == made[1].warm_start and made[0].config == made[1].config
    assert made[0].warm_start.bigram_steps


def test_an_encoder_with_a_causal_warmup_starts_from_bigrams():
    made = planned(budget="5m", model="mlm")
    assert made.warm_start.bigram_steps and made.config.tie_word_embeddings
    assert not planned(budget="5m", model="mlm", clm_warmup=False).warm_start.bigram_steps
    assert not planned(budget="5m", model="bert").warm_start.bigram_steps
