"""Scores equal scikit-learn's, absent classes included, are defined everywhere, and touch neither network nor disk."""

import random
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from finetune.baselines import bounded_sample, columns, compute_baselines, majority_baseline, tfidf_baseline
from finetune.examples import Example, Splits
from finetune.linear import NAIVE_BAYES_TFIDF, fit_tfidf
from finetune.metrics import Accuracy, MacroF1, MatthewsCorrelation, compute_scores, wilson_interval
from finetune.recipe.logistic_regression import log_loss
from mini_llm.engine.errors import DataError

NAMES = ["a", "b", "c", "d"]
CASES = {
    "plain": ([0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 0, 0, 2, 2, 3]),
    "class absent from labels": ([0, 1, 0, 1], [0, 1, 2, 1]),
    "class absent from both": ([0, 1, 0, 1], [0, 1, 1, 1]),
    "class never predicted": ([0, 1, 2, 3], [0, 1, 2, 2]),
    "one class predicted": ([0, 1, 2, 3], [1, 1, 1, 1]),
    "one class there": ([2, 2, 2], [2, 2, 2]),
    "all wrong": ([0, 1], [1, 0]),
    "one example": ([0], [3]),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_scikit_learn(case):
    labels, predictions = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = compute_scores(labels, predictions, NAMES)
    assert scores.accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels, predictions))
    assert scores.macro_f1 == pytest.approx(
        sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    )
    assert scores.mcc == pytest.approx(sklearn_metrics.matthews_corrcoef(labels, predictions))
    report = sklearn_metrics.classification_report(
        labels, predictions, labels=range(4), target_names=NAMES, output_dict=True, zero_division=0
    )
    for row in scores.per_class:
        expected = report[row.name]
        assert [row.precision, row.recall, row.f1] == pytest.approx(
            [expected["precision"], expected["recall"], expected["f1-score"]]
        )
        assert row.support == expected["support"]


def test_the_confusion_matrix_has_labels_in_rows():
    confusion = compute_scores([0, 0, 1, 3], [0, 1, 1, 0], NAMES).confusion
    assert confusion == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_undefined_scores_are_zero():
    scores = compute_scores([0, 0], [1, 1], NAMES)
    absent = scores.per_class[2]
    assert (absent.precision, absent.recall, absent.f1, absent.support) == (0, 0, 0, 0)
    assert scores.mcc == 0 and scores.macro_f1 == 0


def test_numbers_are_plain_and_finite():
    scores = compute_scores(np.array([0, 1, 2]), np.array([0, 1, 1], dtype=np.int32), NAMES)
    assert all(type(value) in (int, float) and np.isfinite(value) for value in scores.numbers().values())
    assert {"accuracy", "accuracy_error", "macro_f1", "mcc", "examples"} <= set(scores.numbers())
    assert scores.class_rows()[0] == ["a", 1.0, 1.0, 1.0, 1]


def test_invalid_scores_are_refused():
    with pytest.raises(DataError, match="no examples"):
        compute_scores([], [], NAMES)
    with pytest.raises(ValueError, match="2 labels, but 1 predictions"):
        compute_scores([0, 1], [0], NAMES)
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        compute_scores([0], [4], NAMES)


def test_standard_error_and_interval():
    scores = compute_scores([0] * 100, [0] * 80 + [1] * 20, NAMES)
    assert scores.accuracy_error == pytest.approx(0.04)
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score interval without continuity correction).
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson_interval(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    low, high = wilson_interval(1.0, 50)
    assert 0.9 < low < 1 and high == 1


def test_metrics_are_evaluate_metrics():
    import evaluate

    for metric, name in ((Accuracy(), "accuracy"), (MacroF1(), "macro_f1"), (MatthewsCorrelation(), "mcc")):
        assert isinstance(metric, evaluate.Metric)
        metric.add_batch(predictions=[0, 1], references=[0, 1])
        metric.add_batch(predictions=[1], references=[0])
        whole = metric.compute(predictions=[0, 1, 1], references=[0, 1, 0])[name]
        assert type(metric)().compute(predictions=[0, 1, 1], references=[0, 1, 0])[name] == whole


@pytest.mark.slow
def test_nothing_is_written_and_no_socket_opened(tmp_path):
    """Run in an audited process whose working directory holds a trap module called `accuracy`."""
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "accuracy.py").write_text("raise SystemExit('the local script was executed')")
    program = """
import os, sys
from finetune.metrics import compute_scores
def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.mkdir", "socket.connect", "socket.getaddrinfo"):
        os.write(2, repr((event, arguments)).encode())
        os._exit(9)
sys.addaudithook(watch)
print(compute_scores([0, 1, 1], [0, 1, 0], ["x", "y"]))
"""
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("accuracy 66.7%")


# Baselines


def separable(test_size=30):
    def part(count):
        return [Example(f"{'good' if i % 3 else 'bad'} thing number {i % 7}", int(i % 3 > 0), "") for i in range(count)]

    return Splits(["bad", "good"], part(90), part(15), part(test_size))


def test_baselines_are_scored_on_the_test_split():
    majority, tfidf = compute_baselines(separable())
    assert majority.scores.examples == tfidf.scores.examples == 30
    assert majority.scores.accuracy == pytest.approx(2 / 3) and majority.scores.mcc == 0
    assert tfidf.scores.accuracy == 1


def test_baselines_use_validation_where_there_is_no_test_split():
    splits = separable()
    splits.test = None
    assert [baseline.scores.examples for baseline in compute_baselines(splits)] == [15, 15]


def test_majority_breaks_ties_by_label():
    splits = Splits(["a", "b"], [Example("x", 1, ""), Example("y", 0, "")], [Example("z", 0, "")])
    assert majority_baseline(splits).scores.accuracy == 1


def test_tfidf_survives_texts_without_words_and_labels_without_training_texts():
    train = [Example(text, label, "") for text, label in (("!", 0), ("?", 1)) for _ in range(9)]
    splits = Splits(["calm", "curious", "never"], train, [Example("?", 1, ""), Example("!", 0, "")])
    assert tfidf_baseline(splits).scores.accuracy == 1


def test_tfidf_is_deterministic():
    assert tfidf_baseline(separable()).scores == tfidf_baseline(separable()).scores


@pytest.mark.parametrize("with_lsa", [False, True])
def test_the_teacher_is_not_fitted_again_for_its_rows(with_lsa, monkeypatch):
    splits = separable()
    texts, labels = columns(splits.train)
    tfidf, scored = fit_tfidf(texts, labels, 2), columns(splits.test)[0]
    lsa = replace(tfidf, name="LSA + logistic regression", components=np.zeros((1, len(tfidf.vocabulary))))
    monkeypatch.setattr("finetune.baselines.fit_tfidf", lambda *_: pytest.fail("fitted again"))
    members = [tfidf, lsa] if with_lsa else [tfidf]
    rows = compute_baselines(splits, 0, [(member, tfidf.probabilities(scored)) for member in members])
    expected = ["majority class", tfidf.name, f"teacher: {tfidf.name} and {lsa.name}"]
    assert [row.name for row in rows] == expected[: 2 + with_lsa]
    assert rows[1].scores.accuracy == rows[-1].scores.accuracy == 1


@pytest.mark.parametrize("name", ["LSA + logistic regression", NAIVE_BAYES_TFIDF])
def test_a_teacher_without_plain_tfidf_has_a_row_of_its_own(name):
    splits = separable()
    texts, labels = columns(splits.train)
    other = replace(fit_tfidf(texts, labels, 2), name=name)
    rows = compute_baselines(splits, 0, [(other, np.full((30, 2), 0.5))])
    assert [row.name for row in rows] == ["majority class", "TF-IDF + logistic regression", f"teacher: {name}"]
    assert rows[1].scores.accuracy == 1 and rows[2].scores.accuracy == pytest.approx(1 / 3)


def test_held_out_texts_choose_the_regularization_of_tfidf():
    draw = random.Random(0)
    rows = [(" ".join(draw.choices("abcdefghijklmnop", k=8)), i % 2) for i in range(300)]
    rows = [(text + (" good fine" if label and draw.random() < 0.4 else ""), label) for text, label in rows]
    texts, labels = [text for text, _ in rows], np.array([label for _, label in rows])
    fitted = fit_tfidf(texts[:200], labels[:200], 2, held_out=(texts[200:], labels[200:]))
    assert len(fitted.out_of_fold) == 0
    assert fitted.log_loss == pytest.approx(log_loss(fitted.probabilities(texts[200:]), labels[200:]), abs=1e-6)
    turned = fit_tfidf(texts[:200], labels[:200], 2, held_out=(texts[200:], 1 - labels[200:]))
    assert np.abs(turned.coefficients).max() < np.abs(fitted.coefficients).max(), "wrong labels ask for smaller weights"


def test_training_text_is_bounded(monkeypatch):
    monkeypatch.setattr("finetune.baselines.MAXIMUM_CHARACTERS", 500)
    splits = separable()
    sample = bounded_sample(splits.train, seed=0)
    assert 400 < sum(len(e.text) for e in sample) <= 500 and sample == bounded_sample(splits.train, seed=0)
    assert f"({len(sample):,} of 90 examples)" in tfidf_baseline(splits).name
