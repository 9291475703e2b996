"""A ladder of small runs: the fitted law, the chosen runs, and the command from end to end."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from mini_llm.corpus.fingerprint import corpus_fingerprint
from mini_llm.engine.config import load_config
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.deadline import Deadline
from mini_llm.engine.run.state import read_state
from pretrain.config import PretrainConfig
from pretrain.ladder.climb import Ladder, Rungs, check, climb, with_fixed_choices
from pretrain.ladder.fit import Law, fit_law
from pretrain.ladder.rungs import MOST_EPOCHS, Size, fitted_rungs, held_out_rung, parse_widths
from pretrain.ladder.use import Record

LAW = Law(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
PARAMETERS = np.repeat([2e5, 4e5, 8e5, 1.6e6], 3)
TOKENS = np.tile([1e6, 4e6, 1.6e7], 4)


def test_the_fit_recovers_a_law_without_noise():
    fit = fit_law(PARAMETERS, TOKENS, LAW.loss(PARAMETERS, TOKENS), resamples=2)
    found = fit.law
    assert [found.E, found.alpha, found.beta] == pytest.approx([LAW.E, LAW.alpha, LAW.beta], rel=1e-3)
    for name in ("A", "B"):
        assert getattr(found, name) == pytest.approx(getattr(LAW, name), rel=1e-2)
    assert float(found.loss(3e6, 2e7)) == pytest.approx(float(LAW.loss(3e6, 2e7)), rel=1e-5)


def test_the_fit_recovers_known_exponents_from_noisy_losses_within_its_intervals():
    noise = np.random.default_rng(3).normal(0, 0.002, len(TOKENS))
    fit = fit_law(PARAMETERS, TOKENS, LAW.loss(PARAMETERS, TOKENS) * np.exp(noise), resamples=80)
    for name in ("E", "alpha", "beta"):
        low, high = fit.interval(name)
        assert low <= getattr(LAW, name) <= high, name
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((LAW.alpha, LAW.beta), abs=0.08)
    loss, low, high = fit.predict(3e6, 2e7)
    assert low <= float(LAW.loss(3e6, 2e7)) <= high and high - low < 0.05 * loss


def test_losses_that_bend_away_from_the_law_widen_the_interval_of_a_prediction():
    """A capability that long runs acquire: their loss falls faster than any law of the short ones."""
    counts = np.outer([3e6, 2.5e6, 2e6, 1.2e6], [1, 2.5, 6.25]).ravel()
    noise = np.random.default_rng(3).normal(0, 0.002, len(counts))

    def bent(parameters, tokens):
        return LAW.loss(parameters, tokens) * np.exp(-0.01 * np.maximum(0, np.log(tokens / 2e6)) ** 2)

    fit = fit_law(PARAMETERS, counts, bent(PARAMETERS, counts) * np.exp(noise), resamples=80)
    of_bootstrap = replace(fit, backtest=None)
    _, low, high = fit.predict(3e6, 6e7)
    assert low <= float(bent(3e6, 6e7)) <= high
    assert float(bent(3e6, 6e7)) < of_bootstrap.predict(3e6, 6e7)[1], "the bootstrap alone does not know"
    assert fit.predict(4e5, 4e6) == of_bootstrap.predict(4e5, 4e6), "nothing is added among the fitted runs"
    assert fit_law(PARAMETERS, TOKENS, LAW.loss(PARAMETERS, TOKENS), resamples=2).backtest is None, "too few counts"


def test_the_fit_hardly_moves_for_one_run_far_off():
    losses = LAW.loss(PARAMETERS, TOKENS)
    losses[5] *= 1.5
    assert float(fit_law(PARAMETERS, TOKENS, losses, resamples=2).law.loss(3e6, 2e7)) == pytest.approx(
        float(LAW.loss(3e6, 2e7)), rel=0.01
    )


def test_the_optimal_size_has_the_lowest_loss_of_all_sizes_with_the_same_compute():
    flops = 1e15
    best, tokens = (float(value) for value in LAW.optimal(flops))
    assert 6 * best * tokens == pytest.approx(flops)
    others = best * np.geomspace(0.1, 10, 99)
    assert float(LAW.loss(best, tokens)) <= LAW.loss(others, flops / 6 / others).min() + 1e-9


@pytest.mark.parametrize(
    ("parameters", "tokens", "losses", "words"),
    [
        ([1e5, 2e5, 4e5] * 2, [1e6, 2e6, 3e6] * 2, [3.0] * 6, "at least 7 runs"),
        ([1e5, 2e5] * 4, [1e6, 2e6, 3e6, 4e6] * 2, [3.0] * 8, "2 sizes and 4 token counts"),
        ([1e5, 2e5, 3e5, 4e5] * 2, [1e6, 2e6] * 4, [3.0] * 8, "longer --budget"),
        (PARAMETERS, TOKENS, [3.0] * 11 + [float("nan")], "diverged"),
    ],
)
def test_points_that_do_not_determine_the_law_are_refused_with_advice(parameters, tokens, losses, words):
    with pytest.raises(ConfigError, match=words):
        fit_law(parameters, tokens, losses)


def size(width: int, seconds: float = 0.01) -> Size:
    return Size(width=width, parameters=100 * width, tokens_per_step=100, step_seconds=seconds, evaluation_seconds=0.5)


def test_every_size_gets_an_equal_share_of_the_time_and_the_held_out_run_the_rest():
    sizes = [size(32), size(64, 0.02), size(96, 0.04)]
    rungs = fitted_rungs(sizes, 600.0, 10**9, 20.0)
    assert len({rung.name for rung in rungs}) == 9
    seconds = [sum(r.steps * s.step_seconds for r in rungs if r.width == s.width) for s in sizes]
    assert seconds == pytest.approx([seconds[0]] * 3, rel=0.02) and 0.6 * 600 < sum(seconds) < 600 * 2 / 3
    assert sum(rung.seconds for rung in rungs) == pytest.approx(400, rel=0.01)
    last = held_out_rung(size(128, 0.08), 200.0, rungs)
    assert last.seconds == 200
    assert 0.9 * 200 < last.steps * 0.08 < 200 and last.tokens <= max(rung.tokens for rung in rungs)
    assert held_out_rung(size(128), 1e6, rungs).tokens == max(rung.tokens for rung in rungs)
    assert held_out_rung(size(128), 0.0, rungs).steps == min(rung.steps for rung in rungs)


@pytest.mark.parametrize("slower", [1.0, 2.0, 4.0])
def test_a_machine_that_becomes_slower_trains_fewer_steps_in_the_same_time(tmp_path, monkeypatch, slower):
    """After the speeds were measured, a step takes `slower` times as long, and every run 5 s more than planned."""
    from pretrain.ladder import climb as module

    clock = [0.0]
    monkeypatch.setattr("mini_llm.engine.run.deadline.time", SimpleNamespace(monotonic=lambda: clock[0]))
    sizes = [size(32), size(64, 0.02), size(96, 0.04), size(128, 0.08)]
    seconds_per_step = {one.width: slower * one.step_seconds for one in sizes}

    def pretrain(config, runs):
        steps = min(config.max_steps, round(config.budget_seconds / seconds_per_step[config.sizes.hidden_size]))
        clock[0] += steps * seconds_per_step[config.sizes.hidden_size] + 5
        (runs / config.run).mkdir()
        (runs / config.run / "metrics.jsonl").write_text(json.dumps({"step": steps}) + "\n")
        return {"val/loss": 3.0}

    monkeypatch.setattr(module, "pretrain", pretrain)
    rungs = Rungs(
        tokenizer="t",
        seconds_used=100,
        fitted=fitted_rungs(sizes[:-1], 600.0, 10**9, 20.0),
        last=sizes[-1],
        held_back=200.0,
        global_batch_size=4,
    )
    alone = SimpleNamespace(num_processes=1, is_main_process=True)
    console = Console(quiet=True)
    ladder = Ladder(load_config(PretrainConfig), "ladder", tmp_path, rungs, 700.0, Deadline(600.0), alone, console)
    done = [ladder.train_fitted(index)[0] for index in range(9)]
    assert clock[0] < 420 and json.loads((tmp_path / "rungs.json").read_text())["seconds_used"] < 700
    assert all(rung.tokens == 100 * rung.steps for rung in done) and len({rung.tokens for rung in done}) >= 3
    assert all(one.steps <= rung.steps and one.name == rung.name for one, rung in zip(done, rungs.fitted, strict=True))
    ladder.train(held_out_rung(sizes[-1], ladder.deadline.left, done))
    assert clock[0] < 610


def test_no_run_reads_the_corpus_more_often_than_the_law_allows():
    rungs = fitted_rungs([size(32), size(64), size(96)], 6000.0, 50_000, 20.0)
    assert max(rung.tokens for rung in rungs) == MOST_EPOCHS * 50_000


@pytest.mark.parametrize(
    ("seconds", "tokens", "words"),
    [(20.0, 10**9, r"too short.*--budget \dm is enough"), (600.0, 2000, "too few for a ladder")],
)
def test_a_budget_or_corpus_that_is_too_small_is_refused_with_advice(seconds, tokens, words):
    with pytest.raises(ConfigError, match=words):
        fitted_rungs([size(32), size(64), size(96)], seconds, tokens, 20.0)


@pytest.mark.parametrize("text", ["32,64,96", "64,32,96,128", "32,32,64,96", "a,b,c,d", "32,64,,96", "1,2,3,4"])
def test_widths_that_cannot_be_used_are_refused(text):
    with pytest.raises(ConfigError, match=re.escape(f"--widths {text}")):
        parse_widths(text)
    assert parse_widths("32, 64,96,128") == [32, 64, 96, 128]


@pytest.mark.parametrize(
    "setting", ["init=runs/gpt", "pairs.path=a.tsv", "sizes.hidden_size=64", "max_steps=9", "budget=null"]
)
def test_settings_that_contradict_a_ladder_are_refused(setting):
    with pytest.raises(ConfigError, match=r"ladder|law"):
        check(load_config(PretrainConfig, None, [setting]))


def test_embeddings_are_random_unless_asked_for():
    assert with_fixed_choices(load_config(PretrainConfig)).init_embeddings == "random"
    assert (
        with_fixed_choices(load_config(PretrainConfig, None, ["init_embeddings=bigrams"])).init_embeddings == "bigrams"
    )


@pytest.mark.slow
def test_a_ladder_runs_resumes_after_a_kill_and_predicts_the_held_out_size(tmp_path, monkeypatch, capsys):
    from pretrain.ladder import climb as module

    monkeypatch.chdir(tmp_path)
    words = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "then", "rests", "under", "some", "old", "tree"]
    generator = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text("\n".join(" ".join(generator.choice(words, 12)) for _ in range(6000)))
    speeds = {16: 0.1, 24: 0.2, 32: 0.3, 48: 0.4}
    monkeypatch.setattr(
        module,
        "measure_size",
        lambda config, plan, *_: Size(
            width=plan.config.hidden_size,
            parameters=1000 * plan.config.hidden_size,
            tokens_per_step=plan.global_batch_size * plan.row.text,
            step_seconds=speeds[plan.config.hidden_size],
            evaluation_seconds=0.1,
        ),
    )
    overrides = ["corpus.sources=text.txt", "budget=60s", "vocab_size=300", "tracking.wandb=disabled"]
    overrides += ["sizes.num_hidden_layers=1", "sizes.max_position_embeddings=8", "global_batch_size=4"]
    overrides += ["runtime.device=cpu", "runtime.precision=fp32", "corpus.validation_fraction=0.01"]
    monkeypatch.setattr("pretrain.ladder.rungs.FEWEST_STEPS", 1)
    monkeypatch.setattr(module, "fit_law", partial(fit_law, resamples=10))
    config = load_config(PretrainConfig, None, overrides)
    trained: list[str] = []
    real = module.pretrain

    def once(config, runs):
        """The first and the held-out run are real; the others reach the losses of a law."""
        if len(trained) == 4:
            trained.append("killed")
            raise KeyboardInterrupt
        width, steps = config.sizes.hidden_size, config.max_steps
        path = runs / config.run_name / "finished.json"
        if not path.exists():
            trained.append(config.run_name)
            if len(trained) in (1, 11):
                return real(config, runs)
            path.parent.mkdir()
            scores = {"val/loss": float(LAW.loss(1000 * width, 32 * steps))}
            path.write_text(json.dumps({"finished": "", "seconds": 1.0, "scores": scores}))
        return json.loads(path.read_text())["scores"]

    monkeypatch.setattr(module, "pretrain", once)
    with pytest.raises(ConfigError, match="too short"):
        climb(load_config(PretrainConfig, None, [*overrides, "budget=1s"]), "16,24,32,48")
    with pytest.raises(KeyboardInterrupt):
        climb(config, "16,24,32,48")
    found = climb(config, "16,24,32,48")
    assert len(trained) == 11 and len(set(trained)) == 11
    folder = tmp_path / "runs" / "gpt-text-ladder"
    record = json.loads((folder / "ladder.json").read_text())
    assert record["held_out"]["measured"] == found.measured and len(record["runs"]) == 9
    assert record["held_out"]["predicted_low"] < record["held_out"]["predicted"] < record["held_out"]["predicted_high"]
    for run in (*record["runs"], record["held_out"]):
        name = run["name"]
        scores = json.loads((folder / name / "finished.json").read_text())["scores"]
        assert scores["val/loss"] == run.get("loss", run.get("measured"))
    page, svg = (folder / "ladder.html").read_text(), (folder / "ladder.svg").read_text()
    assert "held out" in page and "<svg" in page and svg.startswith("<svg xmlns=")
    assert f"measured {found.measured:.4f}" in capsys.readouterr().out
    law = read_state(folder / "law.json", Record)
    assert law.corpus == corpus_fingerprint(config.corpus) and law.vocab_size == 300 and law.parameters == 32_000
    assert law.fit.predict(5e4, 9e3) == pytest.approx(found.fit.predict(5e4, 9e3))
    assert climb(config, "16,24,32,48").measured == found.measured and len(trained) == 11
    with pytest.raises(ConfigError, match="another configuration"):
        climb(config, "16,24,32,64")


def test_the_commands_of_the_document_are_accepted(monkeypatch):
    from typer.testing import CliRunner

    from pretrain.__main__ import app
    from pretrain.ladder import climb as module

    asked: list[tuple] = []
    monkeypatch.setattr(module, "climb", lambda config, widths: asked.append((config.model, config.budget, widths)))
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    commands = re.findall(r"^python -m pretrain (ladder.*)$", text, re.M)
    for command in commands:
        result = CliRunner().invoke(app, command.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert asked == [("gpt", "30m", None), ("mlm", "1h", None), ("gpt", "10m", "32,48,64,96")]
