"""Paired comparisons: tests and intervals against scipy, false alarms and power on simulated pairs, the command."""

import json

import numpy as np
import pytest
import scipy.stats

from mini_llm.engine.errors import ConfigError
from scoring.comparing.run import Request, compare_models
from scoring.comparing.statistics import adjust, compare_correct, compare_ratios, sign_flip_test
from scoring.holm import adjusted


@pytest.mark.parametrize("seed", range(4))
def test_the_permutation_test_is_scipys(seed):
    differences = np.random.default_rng(seed).normal(0.3, 1, 12)
    expected = scipy.stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue  # all 4,096 signs
    assert sign_flip_test(differences, 0, 20_000) == pytest.approx(expected, abs=0.012)


def test_a_p_value_is_never_0_and_ties_say_nothing():
    assert sign_flip_test(np.full(60, 0.1), 0, 99) == 0.01
    assert sign_flip_test(np.zeros(9)) == 1 == sign_flip_test(np.array([]))


@pytest.mark.parametrize("make", ["normal", "heavy tails", "few documents decide"])
def test_false_alarms_are_5_percent(make):
    alarms = 0
    for seed in range(1500):
        generator = np.random.default_rng(seed)
        differences = {
            "normal": lambda g: g.normal(size=30),
            "heavy tails": lambda g: g.standard_t(2, size=30),
            "few documents decide": lambda g: g.normal(size=30) * g.gamma(0.3, 1, 30),
        }[make](generator)
        alarms += sign_flip_test(differences, seed, 199) < 0.05
    assert alarms / 1500 == pytest.approx(0.05, abs=0.015)


def test_power_rises_with_the_difference_and_with_the_rows():
    def power(effect: float, rows: int) -> float:
        draws = np.random.default_rng(0).normal(effect, 1, (100, rows))
        return float(np.mean([sign_flip_test(row, 1, 199) < 0.05 for row in draws]))

    rising = [power(effect, 30) for effect in (0, 0.25, 0.5, 1)]
    assert rising == sorted(rising) and rising[0] < 0.1 and rising[-1] > 0.95
    assert power(0.25, 20) < power(0.25, 80) < power(0.25, 300)


def test_mcnemar_is_the_binomial_test_of_wins_and_keeps_its_level():
    draws = np.random.default_rng(0).random((400, 2, 200)) < 0.6  # equally good
    wins, losses = (draws[:, 1] & ~draws[:, 0]).sum(-1), (draws[:, 0] & ~draws[:, 1]).sum(-1)
    p_values = [scipy.stats.binomtest(int(w), int(w + lost)).pvalue for w, lost in zip(wins, losses, strict=True)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.065  # the exact test is conservative
    for k in range(5):
        found = compare_correct("accuracy", *draws[k])
        assert (found.wins, found.losses) == (wins[k], losses[k]) and found.p_value == pytest.approx(p_values[k])
        assert found.interval[0] <= found.difference <= found.interval[1]


def test_ratios_are_compared_row_by_row():
    generator = np.random.default_rng(0)
    size = generator.integers(50, 500, 40).astype(float)
    a = size * generator.normal(1.0, 0.1, 40)
    b = a - size * generator.normal(0.05, 0.02, 40)
    found = compare_ratios("bits per byte", a, b, size, 1 / np.log(2))
    assert found.a_score == pytest.approx(a.sum() / size.sum() / np.log(2))
    assert found.difference == pytest.approx(found.b_score - found.a_score)
    assert found.interval[0] < found.difference < found.interval[1] < 0
    assert (found.wins, found.losses) == ((b < a).sum(), (b > a).sum())
    assert found.verdict("x", "y") == "y is better than x"
    higher = compare_ratios("chrF", a, b, size, lower=False)
    assert higher.verdict("x", "y") == "x is better than y" and higher.wins == found.losses
    assert compare_ratios("z", a, a, size).verdict("x", "y") == "no difference shown between x and y"


def test_p_values_are_adjusted_as_holm_says():
    # Holm 1979: 0.01 * 4, 0.0125 * 3 (not below the one before), 0.03 * 2, 0.5 * 1
    assert adjusted([0.03, 0.01, 0.5, 0.0125]) == pytest.approx([0.06, 0.04, 0.5, 0.04])
    assert adjusted([0.6, 0.9]) == pytest.approx([1, 1]) and adjusted([]) == []
    pair = compare_correct("accuracy", np.zeros(8), np.array([1] * 7 + [0]))
    assert pair.shown and not adjust([pair] * 9)[0].shown


def test_texts_questions_and_masked_tokens_are_compared(lab):
    models = [lab / "runs" / "gpt", lab / "runs" / "gpt-b"]
    texts = Request([str(lab / "news.jsonl")])
    found = compare_models([*models, models[0]], texts)
    assert [pair["rows"] for pair in found["pairs"]] == [30, 30]
    other, same = found["pairs"]
    assert other["verdict"].endswith(f"better than {models[0]}") and same["wins"] == same["losses"] == 0
    assert same["verdict"].startswith("no difference shown")
    assert found["models"][0]["parameters"] == 43_200 and found["models"][0]["milliseconds_per_generated_token"] > 0
    asked = Request([], questions=lab / "questions.jsonl", shots_file=lab / "solved.jsonl", shots=2)
    (pair,) = compare_models(models, asked)["pairs"]
    assert pair["rows"] == 9 and pair["test"] == "McNemar's exact test"
    (pair,) = compare_models([lab / "runs" / "mlm", lab / "runs" / "mlm-b"], texts)["pairs"]
    assert pair["score"] == "masked loss (nats)" and json.dumps(pair)
    (pair,) = compare_models([lab / "runs" / "t5"] * 2, Request([str(lab / "pairs.jsonl")]))["pairs"]
    assert pair["score"] == "chrF" and pair["difference"] == 0


@pytest.mark.parametrize(
    ("names", "request_", "message"),
    [
        (["gpt"], Request(["x"]), "two models"),
        (["gpt", "mlm"], Request(["x"]), "different kinds .*gpt is a decoder, .*mlm is an encoder"),
        (["gpt", "gpt-b"], Request([]), "--data FILE"),
        (["mlm", "mlm-b"], Request([], questions="q.jsonl"), "--questions compares decoders"),
    ],
)
def test_what_cannot_be_compared_is_said(lab, names, request_, message):
    with pytest.raises(ConfigError, match=message):
        compare_models([lab / "runs" / name for name in names], request_)


def test_encoders_of_different_tokenizers_have_no_rows_in_common(lab, monkeypatch):
    from scoring.comparing import run

    names = iter("ab")
    monkeypatch.setattr(run, "fingerprint", lambda *_: (next(names),))
    with pytest.raises(ConfigError, match="different tokenizers"):
        compare_models([lab / "runs" / "mlm", lab / "runs" / "mlm-b"], Request([str(lab / "news.jsonl")]))
