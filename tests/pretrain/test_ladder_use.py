"""The plan of a run chooses its width by the law of a ladder on the same corpus."""

import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mini_llm.corpus.fingerprint import corpus_fingerprint
from mini_llm.engine.config import build_config
from mini_llm.engine.run.state import read_state
from pretrain.config import PretrainConfig
from pretrain.ladder.fit import fit_law
from pretrain.ladder.law import MOST_EPOCHS, Fit, Law
from pretrain.ladder.use import FARTHEST, WIDTHS, Record, width_by_ladder, write_law
from pretrain.plan import speed
from pretrain.plan.draft import DraftTokenizer
from pretrain.plan.sizes import Plan, make_plan

LAW = Law(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
# Of ladders on texts where size, and where tokens, matter more.
LARGE, LONG = Law(1.7, 4000.0, 41.0, 0.34, 0.28), Law(1.7, 40.0, 4100.0, 0.34, 0.28)
PARAMETERS = np.repeat([2e5, 4e5, 8e5, 1.6e6], 3)
TOKENS = np.tile([1e6, 4e6, 1.6e7], 4)
VOCABULARY, CORPUS_TOKENS = 1024, 400_000_000


@pytest.fixture(autouse=True)
def one_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "matmul_ceiling", lambda *_: 4.3e11)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("To be or not to be.\n" * 99)


def settings(**values) -> PretrainConfig:
    return build_config(PretrainConfig, {"budget": "3m", "corpus": {"sources": "text.txt"}, **values}, "test")


@cache
def noisy_fit(law: Law) -> Fit:
    noise = np.random.default_rng(3).normal(0, 0.002, len(TOKENS))
    return fit_law(PARAMETERS, TOKENS, law.loss(PARAMETERS, TOKENS) * np.exp(noise), resamples=20)


def add_ladder(law: Law, name: str = "gpt-text-ladder", **changed) -> None:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    fit = noisy_fit(law)
    held = {"model": "gpt", "corpus": corpus_fingerprint(settings().corpus), "vocab_size": VOCABULARY, "length": 128}
    write_law(folder, fit, **{**held, "parameters": 1_600_000, **changed})


def plan_of(tokens: int = CORPUS_TOKENS, **values) -> tuple[Plan, dict[str, tuple[str, str]]]:
    made = make_plan(settings(**values), None, DraftTokenizer(VOCABULARY), tokens, None, 1, torch.device("cpu"))
    return made, {what: (value, why) for what, value, why in made.reasons}


@pytest.mark.parametrize("law", [LAW, LARGE, LONG])
def test_the_width_is_the_one_with_the_lowest_loss_for_the_budget(law):
    add_ladder(law)
    given = {}

    def candidate(width: int) -> tuple[float, float]:
        given[width] = 12 * 4 * width**2, 1e12 / width**2
        return given[width]

    found = width_by_ladder(settings(), VOCABULARY, CORPUS_TOKENS, candidate)
    reached = {width: law.loss(*pair) for width, pair in given.items() if pair[0] <= FARTHEST * 1.6e6}
    best = min(reached, key=reached.get)
    # The fit is to noisy losses: a neighbour may be as good.
    assert abs(WIDTHS.index(found.width) - WIDTHS.index(best)) <= 1
    assert found.low <= float(law.loss(*given[found.width])) <= found.high
    assert found.low < found.loss < found.high and found.length == 128


def test_the_plan_says_the_predicted_loss_and_whose_law_it_is():
    _, before = plan_of()
    assert "predicted loss" not in before
    add_ladder(LARGE)
    large, reasons = plan_of()
    assert "gpt-text-ladder" in reasons["hidden_size"][1] and "gpt-text-ladder" in reasons["predicted loss"][1]
    loss, low, high = map(float, re.findall(r"[\d.]+", reasons["predicted loss"][0]))
    assert low < loss < high
    add_ladder(LONG, "newer-ladder")
    os.utime("runs/gpt-text-ladder/law.json", (1, 1))
    long, reasons = plan_of()
    assert long.config.hidden_size < large.config.hidden_size and "newer-ladder" in reasons["hidden_size"][1]


@pytest.mark.parametrize(
    "values",
    [{"sizes": {"hidden_size": 96}}, {"budget": None}, {"model": "mlm"}, {"corpus": {"sources": "other.txt"}}],
)
def test_a_run_that_the_ladder_does_not_fit_is_planned_as_without_one(values):
    Path("other.txt").write_text("The rest is silence.\n" * 99)
    before = plan_of(**values)
    add_ladder(LONG)
    after = plan_of(**values)
    assert after[1] == before[1] and after[0].config == before[0].config


@pytest.mark.parametrize("changed", [{"vocab_size": 2048}, {"model": "llama"}, {"parameters": 1000}])
def test_a_law_for_something_else_is_not_used(changed):
    add_ladder(LONG, **changed)
    assert "predicted loss" not in plan_of()[1]


def test_a_damaged_law_is_left_out(capsys):
    add_ladder(LONG)
    Path("runs/gpt-text-ladder/law.json").write_text('{"model": "gpt"')
    assert "predicted loss" not in plan_of()[1] and "damaged" in capsys.readouterr().err


def test_tokens_that_are_read_more_than_four_times_do_not_count():
    """Where both widths would repeat the text, the wider model is better."""
    add_ladder(LAW)
    corpus = 100_000

    def candidate(width: int) -> tuple[float, float]:
        return 48.0 * width**2, 1e13 / width**2

    found = width_by_ladder(settings(), VOCABULARY, corpus, candidate)
    parameters, tokens = candidate(found.width)
    assert tokens > MOST_EPOCHS * corpus and WIDTHS[WIDTHS.index(found.width) + 1] ** 2 * 48 > FARTHEST * 1.6e6
    assert found.loss == pytest.approx(float(LAW.loss(parameters, MOST_EPOCHS * corpus)), rel=0.05)


def test_the_backtest_is_stored_with_the_law_and_a_damaged_one_is_refused():
    counts = np.outer([3e6, 2.5e6, 2e6, 1.2e6], [1, 2.5, 6.25]).ravel()
    noise = np.random.default_rng(3).normal(0, 0.002, len(counts))
    fit = fit_law(PARAMETERS, counts, LAW.loss(PARAMETERS, counts) * np.exp(noise), resamples=20)
    Path("runs").mkdir()
    write_law(Path("runs"), fit, model="gpt", corpus="c", vocab_size=9, length=8, parameters=9)
    path = Path("runs/law.json")
    found = read_state(path, Record)
    assert fit.backtest is not None and found is not None
    assert found.fit.predict(3e6, 6e7) == pytest.approx(fit.predict(3e6, 6e7))
    path.write_text(re.sub(r'"distance": [\d.]+', '"distance": 0', path.read_text()))
    assert read_state(path, Record) is None
