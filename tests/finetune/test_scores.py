"""Intervals, calibration, abstention, comparison and label errors on simulated data, where the truth is known."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from finetune.metrics import wilson_interval
from finetune.scores.calibration import (
    Calibration,
    Threshold,
    fit_temperature,
    read_calibration,
    scale,
    write_calibration,
)
from finetune.scores.compare import compare, mcnemar
from finetune.scores.intervals import (
    absolute_sum_interval,
    bca,
    confusion_intervals,
    confusion_scores,
    probability_intervals,
)
from finetune.scores.label_errors import suspected_label_errors
from finetune.scores.reliability import (
    bin_gaps,
    expected_calibration_error,
    log_loss,
    reliability_rows,
)
from finetune.scores.selective import answered_at, aurc, risk_coverage, threshold_for
from finetune.scoring import calibrate
from mini_llm.engine.errors import CheckpointError
from tests.simulated_classifier import simulate


def confusion_of(labels, probabilities):
    return sklearn_metrics.confusion_matrix(labels, probabilities.argmax(-1), labels=range(probabilities.shape[1]))


# Intervals


def test_scores_of_confusion_matrices_equal_scikit_learn():
    for seed, classes in ((0, 2), (1, 3), (2, 7)):
        labels, probabilities = simulate(40, classes, seed=seed)
        predicted = probabilities.argmax(-1)
        matrix = confusion_of(labels, probabilities)
        cells = np.argwhere(matrix)
        found = confusion_scores(cells, matrix[cells[:, 0], cells[:, 1]][None], classes)
        expected = sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0)
        assert found["macro_f1"][0] == pytest.approx(expected)
        assert found["mcc"][0] == pytest.approx(sklearn_metrics.matthews_corrcoef(labels, predicted))
        by_class = sklearn_metrics.f1_score(labels, predicted, average=None, labels=range(classes), zero_division=0)
        assert found["f1"][0] == pytest.approx(by_class)


def coverage(repetitions, count, temperature):
    """Share of 95 % intervals that hold the score of the population, by score."""
    population = simulate(200_000)[0], scale(simulate(200_000)[1], temperature)
    labels, probabilities = population
    predicted = probabilities.argmax(-1)
    truth = {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
        "mcc": sklearn_metrics.matthews_corrcoef(labels, predicted),
        "log_loss": log_loss(labels, probabilities),
        "ece": expected_calibration_error(labels, probabilities),
    }
    held, generator = dict.fromkeys(truth, 0), np.random.default_rng(1)
    for seed in range(repetitions):
        rows = generator.integers(len(labels), size=count)
        matrix = confusion_of(labels[rows], probabilities[rows])
        found = confusion_intervals(matrix, seed, 1000) | probability_intervals(
            labels[rows], probabilities[rows], seed, 1000
        )
        found["accuracy"] = wilson_interval(float(np.trace(matrix)) / count, count)
        for name, value in truth.items():
            held[name] += found[name][0] <= value <= found[name][1]
    return {name: times / repetitions for name, times in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 0.85])
def test_intervals_cover_the_truth_in_95_percent_of_cases(temperature):
    for name, share in coverage(1000, 300, temperature).items():
        assert 0.93 <= share <= 0.97, (name, share)


def test_percentiles_would_miss_a_small_calibration_error_and_the_interval_does_not():
    labels, probabilities = simulate(400)
    gaps = bin_gaps(labels, probabilities)
    generator = np.random.default_rng(0)
    resampled = np.stack([gaps[generator.integers(400, size=400)].mean(0) for _ in range(1000)])
    assert np.quantile(np.abs(resampled).sum(-1), 0.025) > 0.01  # the truth is 0
    low, high = absolute_sum_interval(gaps.mean(0), resampled)
    assert low == 0 and 0 < high < 0.1
    assert absolute_sum_interval(np.zeros(3), np.zeros((9, 3))) == (0, 0)


def test_intervals_are_repeatable_ordered_and_hold_the_estimate():
    labels, probabilities = simulate(150, 4)
    matrix = confusion_of(labels, probabilities)
    found = confusion_intervals(matrix)
    assert found == confusion_intervals(matrix) and found != confusion_intervals(matrix, seed=1)
    for (low, high), value in (
        (found["mcc"], sklearn_metrics.matthews_corrcoef(labels, probabilities.argmax(-1))),
        (probability_intervals(labels, probabilities)["log_loss"], log_loss(labels, probabilities)),
    ):
        assert low < value < high


def test_bca_equals_scipy():
    from scipy.stats import bootstrap

    sample = np.random.default_rng(0).exponential(size=40)
    expected = bootstrap((sample,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    resampled = expected.bootstrap_distribution
    left_out = (sample.sum() - sample) / 39
    assert bca(sample.mean(), resampled, left_out) == pytest.approx(tuple(expected.confidence_interval), abs=2e-3)


def test_intervals_of_degenerate_scores_are_defined():
    one = np.array([[1.0, 0.0]])
    for labels, probabilities in ((np.array([0]), one), (np.zeros(9, int), np.repeat(one, 9, 0))):
        matrix = confusion_of(labels, probabilities)
        found = confusion_intervals(matrix) | probability_intervals(labels, probabilities)
        values = [*found["macro_f1"], *found["mcc"], *found["log_loss"], *found["ece"], *np.ravel(found["f1"])]
        assert np.isfinite(values).all()


# Calibration


def test_temperature_scaling_halves_the_calibration_error_and_keeps_every_prediction():
    labels, calibrated = simulate(6000)
    overconfident = scale(calibrated, 0.4)
    temperature = fit_temperature(labels[:2000], overconfident[:2000])
    assert temperature == pytest.approx(2.5, rel=0.1)
    scaled = scale(overconfident[2000:], temperature)
    before, after = (expected_calibration_error(labels[2000:], p) for p in (overconfident[2000:], scaled))
    assert before > 0.1 and after < before / 2
    assert log_loss(labels[2000:], scaled) < log_loss(labels[2000:], overconfident[2000:])


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.7, 20.0])
def test_no_temperature_changes_the_arg_max(temperature):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 5)) * generator.choice([1e-6, 0.1, 3, 60], size=(20_000, 1))
    probabilities = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    scaled = Calibration(temperature).apply(probabilities)
    assert (scaled.argmax(-1) == probabilities.argmax(-1)).all()
    assert np.isfinite(scaled).all() and scaled.sum(-1) == pytest.approx(1)


def test_a_small_validation_set_without_a_mistake_does_not_ask_for_certainty():
    probabilities = np.tile([0.9, 0.1], (20, 1))
    temperature = fit_temperature(np.zeros(20, int), probabilities)
    assert 0.9 < scale(probabilities, temperature)[0, 0] < 0.99


def test_calibration_is_stored_with_the_model(tmp_path):
    assert read_calibration(tmp_path) is None
    stored = Calibration(1.7, {0.9: Threshold(0.8, 0.7, 0.93)}, "validation", 500, 0.1, 0.02)
    write_calibration(tmp_path, stored)
    assert read_calibration(tmp_path) == stored
    assert json.loads((tmp_path / "calibration.json").read_text())["temperature"] == 1.7
    for damage in (
        '{"temperature": ',
        "[]",
        "{}",
        '{"temperature": 0}',
        '{"temperature": "hot"}',
        '{"temperature": NaN}',
    ):
        (tmp_path / "calibration.json").write_text(damage)
        with pytest.raises(CheckpointError, match="not a calibration"):
            read_calibration(tmp_path)


def test_reliability_bins_add_up_to_the_calibration_error():
    labels, probabilities = simulate(500)
    rows = reliability_rows(labels, probabilities)
    assert sum(count for *_, count in rows) == 500
    total = sum(abs(probability - accuracy) * count for probability, accuracy, count in rows) / 500
    assert expected_calibration_error(labels, probabilities) == pytest.approx(total)
    assert log_loss(labels, probabilities) == pytest.approx(sklearn_metrics.log_loss(labels, probabilities))


# Abstention


def test_risk_and_coverage_of_a_small_example():
    labels = np.array([0, 0, 0, 0])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6]])
    covered, risk, thresholds = risk_coverage(labels, probabilities)
    assert thresholds.tolist() == [0.9, 0.8, 0.6]  # two rows of probability 0.8 are answered together
    assert covered.tolist() == [0.25, 0.75, 1] and risk == pytest.approx([0, 1 / 3, 0.5])
    assert aurc(labels, probabilities) == pytest.approx((0 + 2 / 3 + 0.5) / 4)
    found = threshold_for(labels, probabilities, 0.6, confidence=0)
    assert found == Threshold(0.8, 0.75, pytest.approx(2 / 3))
    assert answered_at(labels, probabilities, 0.85) == (0.25, 1.0) and answered_at(labels, probabilities, 1) == (
        0,
        None,
    )


def test_thresholds_keep_their_promise_on_new_rows():
    missed = {0.0: 0, 0.9: 0}
    for seed in range(60):
        labels, probabilities = simulate(4500, seed=seed)
        for confidence in missed:
            found = threshold_for(labels[:500], probabilities[:500], 0.9, confidence)
            if found is not None:
                missed[confidence] += answered_at(labels[500:], probabilities[500:], found.probability)[1] < 0.9
    assert missed[0.9] <= 12 < 20 <= missed[0.0]


def test_a_precision_out_of_reach_has_no_threshold():
    labels, probabilities = simulate(100)
    assert threshold_for(labels, probabilities, 0.99) is None
    assert set(calibrate(*simulate(3000, spread=4.0)).thresholds) >= {0.9, 0.95}
    assert calibrate(labels[:5], probabilities[:5]).thresholds == {}


# Comparison


def pair(generator, count, advantage=0.0, classes=3):
    labels = generator.integers(classes, size=count)
    signal = np.eye(classes)[labels] * 1.2
    a, b = (signal * (1 + more) + generator.normal(size=(count, classes)) for more in (0, advantage))
    return labels, a, b


@pytest.mark.slow
def test_two_equal_classifiers_differ_by_chance_in_5_percent_of_cases():
    generator, alarms, repetitions = np.random.default_rng(0), np.zeros(3), 1500
    for seed in range(repetitions):
        found = compare(*pair(generator, 600), seed)
        outside = [not low <= 0 <= high for low, high in (found.accuracy_interval, found.macro_f1_interval)]
        alarms += [found.verdict().startswith("no difference") is False, *outside]
    assert np.all(abs(alarms / repetitions - 0.05) <= 0.015), alarms / repetitions


def test_a_real_difference_is_found_and_named():
    found = compare(*pair(np.random.default_rng(0), 800, advantage=0.5))
    assert found.verdict("old", "new") == "new is more accurate than old"
    assert found.accuracy_interval[0] > 0 and found.macro_f1_interval[0] > 0 and found.p_value < 0.001
    assert found.wins - found.losses == round(found.accuracy_difference * 800)
    labels, a, b = pair(np.random.default_rng(0), 800, advantage=0.5)
    assert compare(labels, b, a).verdict("new", "old") == "new is more accurate than old"
    same = compare(labels, a, a)
    assert same.p_value == 1 and same.accuracy_interval == (0, 0) and "no difference shown" in same.verdict()


def test_mcnemar_is_the_exact_binomial_test():
    # Fagerland, Lydersen and Laake 2013, table 1: 1 and 7 discordant pairs, exact conditional p = 0.070.
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5) == mcnemar(7, 1)
    assert mcnemar(0, 0) == 1


def test_comparing_refuses_arrays_that_do_not_match():
    with pytest.raises(ValueError, match="cannot compare"):
        compare(np.zeros(2, int), np.zeros((2, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="3 labels, but 2 rows"):
        compare(np.zeros(3, int), np.zeros((2, 2)), np.zeros((2, 2)))


# Label errors


def test_planted_label_errors_are_ranked_first():
    generator = np.random.default_rng(0)
    truth, probabilities = simulate(2000, 4, spread=10.0)
    labels = truth.copy()
    flipped = generator.choice(2000, 100, replace=False)
    labels[flipped] = (labels[flipped] + generator.integers(1, 4, size=100)) % 4
    found = suspected_label_errors(labels, probabilities)
    first = {row.index for row in found[:100]}
    assert len(first & set(flipped.tolist())) >= 70
    assert [row.self_confidence for row in found] == sorted(row.self_confidence for row in found)
    assert all(row.label == labels[row.index] != row.suggested for row in found)


def test_correct_labels_are_not_suspect():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    assert suspected_label_errors(np.array([0, 0, 1]), probabilities) == []
    (row,) = suspected_label_errors(
        np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.95, 0.05], [0.2, 0.8], [0.97, 0.03]])
    )
    assert (row.index, row.label, row.suggested) == (3, 1, 0)


def test_a_class_that_is_usually_surer_does_not_make_its_unsure_rows_suspect():
    # The third row leans to class 0, but by less than rows of class 0 usually do.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [0.2, 0.8]])
    assert suspected_label_errors(np.array([0, 0, 1, 1]), probabilities) == []
