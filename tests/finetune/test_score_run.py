"""A scored run: its tables, calibration, report page and stored predictions, and `finetune compare` from these."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics as sklearn_metrics

from finetune.config import FinetuneConfig
from finetune.examples import Example, Splits
from finetune.metrics import compute_scores
from finetune.scores.calibration import read_calibration, scale
from finetune.scores.compare_runs import compare_classifiers
from finetune.scores.predictions import read_predictions, write_predictions
from finetune.scores.tables import errors_table, per_class_table, precision_recall_table, thinned
from finetune.scoring import score_run
from mini_llm.engine.errors import ConfigError, DataError
from mini_llm.engine.report.page import write_report
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker
from tests.simulated_classifier import simulate


def test_the_worst_mistakes_of_every_class_are_listed():
    labels, probabilities = simulate(3000, 3)
    labels[labels == 2] = 0
    labels[:3] = 2
    examples = [Example(f"text {i}", int(label), f"row {i}") for i, label in enumerate(labels)]
    columns, rows = errors_table(examples, probabilities, ["a", "b", "c"])
    assert columns[:4] == ["source", "label", "predicted", "probability"]
    wrong = [i for i in range(3) if probabilities[i].argmax() != 2]
    assert {f"row {i}" for i in wrong} == {row[0] for row in rows if row[1] == "c"}
    for name in "ab":
        confidence = [row[3] for row in rows if row[1] == name]
        assert len(confidence) >= 10 and confidence == sorted(confidence, reverse=True)
    assert max(row[3] for row in rows) == max(
        p.max() for p, label in zip(probabilities, labels, strict=True) if p.argmax() != label
    )


def test_curves_are_thinned_and_classes_without_rows_have_none():
    labels, probabilities = simulate(3000, 3)
    labels[labels == 1] = 0
    _, rows = precision_recall_table(labels, probabilities, ["a", "b", "c"])
    assert {row[0] for row in rows} == {"a", "c"} and len(rows) <= 400
    points = np.arange(1000.0)[:, None]
    assert thinned(points)[[0, -1], 0].tolist() == [0, 999]


# A whole run, with a stand-in for the model


@pytest.fixture
def splits():
    labels, probabilities = simulate(900, 3)
    examples = [Example(f"text {i} <b>", int(label), f"data.csv row {i}") for i, label in enumerate(labels)]
    table = {e.text: p for e, p in zip(examples, scale(probabilities, 0.5).astype(np.float32), strict=True)}
    return Splits(["one", "two", "three"], examples[:60], examples[60:460], examples[460:]), table


def scored(path, splits, monkeypatch, test=True, seed=0, noise=0.0):
    data, table = splits
    generator = np.random.default_rng(seed)

    class StandIn:
        def __init__(self, directory):
            self.model = SimpleNamespace(parameters=list)

        def probabilities(self, texts, batch_size):
            found = np.array([table[text] for text in texts])
            return scale(found * np.exp(noise * generator.normal(size=found.shape)), 1)

    monkeypatch.setattr("finetune.scoring.Classifier", StandIn)
    parts = data if test else Splits(data.names, data.train, data.validation)
    config = FinetuneConfig(seed=seed, run=path.name)
    console = Console(record=True, width=200, quiet=False)
    with RunDirectory(path) as run, Tracker(path, TrackingConfig(wandb="disabled"), "finetune", {}) as tracker:
        run.record(config.model_dump(mode="json"))
        run.model.mkdir()
        (run.model / "config.json").write_text("{}")
        numbers = score_run(config, parts, run, tracker, console)
        run.finish(numbers)
    return numbers, console.export_text()


def test_a_run_is_calibrated_on_validation_and_scored_on_test(tmp_path, splits, monkeypatch):
    numbers, printed = scored(tmp_path / "run", splits, monkeypatch)
    stored = read_calibration(tmp_path / "run" / "model")
    assert stored.temperature == pytest.approx(2, rel=0.25) and stored.examples == 400
    assert stored.ece_after < stored.ece_before / 2 and 0.9 in stored.thresholds
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    own, majority, tfidf = summary["scores"]
    for name in ("accuracy", "macro_f1", "mcc", "log_loss", "ece"):
        assert own[f"{name}_low"] < own[name] < own[f"{name}_high"], name
    assert numbers["test/ece"] == own["ece"] > summary["ece_calibrated"]
    assert majority["baseline"] and tfidf["macro_f1_low"] <= tfidf["macro_f1"] and "ece" not in tfidf
    assert "calibration: temperature" in printed and "flatters" not in printed
    tables = {path.stem for path in (tmp_path / "run" / "tables").glob("*.json")}
    assert tables >= {"per_class", "confusion", "reliability", "risk_coverage", "precision_recall", "abstention"}
    assert tables >= {"errors", "suspected_label_errors"}
    page = write_report(tmp_path / "run").read_text()
    for text in ("Reliability", "Risk and coverage", "Precision and recall by class", "Suspected label errors"):
        assert text in page
    assert "Abstention" in page and "&lt;b&gt;" in page and "predictions" not in page.lower()


def test_without_a_test_split_calibration_says_that_it_saw_the_scored_rows(tmp_path, splits, monkeypatch):
    _, printed = scored(tmp_path / "run", splits, monkeypatch, test=False)
    assert "fitted on 400 validation examples (the same rows, so that this flatters it)" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["scored_on"] == "validation" and "the scored rows themselves" in summary["calibrated_on"]


def test_runs_are_compared_from_their_stored_predictions(tmp_path, splits, monkeypatch):
    paths = [tmp_path / name for name in ("one", "two", "noisy")]
    for seed, (path, noise) in enumerate(zip(paths, (0, 0.05, 4), strict=True)):
        scored(path, splits, monkeypatch, seed=seed, noise=noise)
    (same, worse), groups = compare_classifiers(paths)
    assert "no difference shown" in same.comparison.verdict()
    assert worse.comparison.verdict("one", "noisy") == "one is more accurate than noisy"
    assert worse.comparison.rows == 440 and worse.comparison.accuracy_difference < 0
    (group,) = groups
    accuracies = [json.loads((path / "summary.json").read_text())["scores"][0]["accuracy"] for path in paths]
    assert group.names == ["one", "two", "noisy"]
    assert group.scores["accuracy"] == (pytest.approx(np.mean(accuracies)), pytest.approx(np.std(accuracies, ddof=1)))


def test_rows_and_labels_are_matched_by_name(tmp_path):
    labels, probabilities = simulate(50, 3)
    examples = [Example(f"text {i}", int(label), f"row {i}") for i, label in enumerate(labels)]
    one, two = tmp_path / "one", tmp_path / "two"
    write_predictions(one, "test", examples, probabilities, ["a", "b", "c"])
    order = np.random.default_rng(0).permutation(50)
    turned = [examples[i]._replace(label=2 - examples[i].label) for i in order]
    write_predictions(two, "test", turned, probabilities[order][:, ::-1], ["c", "b", "a"])
    ((_, _, found, _),), _ = compare_classifiers([one, two])
    assert found.accuracy_difference == 0 and found.wins == found.losses == 0
    assert read_predictions(one).probabilities == pytest.approx(probabilities, abs=1e-6)

    write_predictions(two, "test", examples[1:], probabilities[1:], ["a", "b", "c"])
    with pytest.raises(ConfigError, match="different rows: 49 of 50"):
        compare_classifiers([one, two])
    write_predictions(two, "test", [e._replace(label=0) for e in examples], probabilities, ["a", "b", "c"])
    with pytest.raises(ConfigError, match="rows have different labels"):
        compare_classifiers([one, two])
    write_predictions(two, "test", examples, probabilities, ["a", "b", "d"])
    with pytest.raises(ConfigError, match="different labels"):
        compare_classifiers([one, two])
    head = '{"split": "test", "labels": ["a", "b"]}\n'
    for row in ('{"source": 1}', '{"source": "row 0", "label": "a", "probabilities": [1.0]}', ""):
        (two / "tables" / "predictions.jsonl").write_text(f"{head}{row}\n")
        with pytest.raises(DataError, match="damaged"):
            compare_classifiers([one, two])
    with pytest.raises(ConfigError, match="give labelled rows"):
        compare_classifiers([one, tmp_path / "none"])
    with pytest.raises(ConfigError, match="two classifiers or more"):
        compare_classifiers([one])


def test_what_predict_gives_is_compared_and_the_transformer_alone_on_request(tmp_path):
    labels, probabilities = simulate(60, 3)
    examples = [Example(f"text {i}", int(label), f"row {i}") for i, label in enumerate(labels)]
    runs, names = [tmp_path / "one", tmp_path / "two"], ["a", "b", "c"]
    right = np.eye(3)[labels] * 0.9 + 0.1 / 3
    for run in runs:
        write_predictions(run, "test", examples, probabilities, names)
        scores = [{"name": run.name, "accuracy": 0.5}, {"name": f"{run.name}, pooled", "accuracy": 0.75}]
        (run / "summary.json").write_text(json.dumps({"scores": [*scores, {"name": "m", "baseline": True}]}))
        (run / "requested.yaml").write_text("seed: 0")
    write_predictions(runs[1], "test", examples, probabilities, names, pooled=right)
    (runs[1] / "model" / "linear").mkdir(parents=True)
    ((_, _, found, pooled),), (group,) = compare_classifiers(runs)
    assert found.accuracy_b == 1 > found.accuracy_a and pooled == (False, True)
    assert group.scores["accuracy"][0] == 0.625  # of the Transformer of one, and of the pool of two
    ((_, _, found, pooled),), (group,) = compare_classifiers(runs, alone=True)
    assert found.wins == found.losses == 0 and pooled == (False, False) and group.scores["accuracy"][0] == 0.5
    # A file of an earlier release, beside linear models.
    write_predictions(runs[1], "test", examples, probabilities, names)
    with pytest.raises(ConfigError, match=r"Take those of the Transformer alone \(--alone\)"):
        compare_classifiers(runs)
    assert compare_classifiers(runs, alone=True)[0][0].comparison.rows == 60


def test_the_table_of_classes_has_intervals_and_average_precision(splits):
    labels, probabilities = simulate(400, 3)
    scores = compute_scores(labels, probabilities.argmax(-1), ["a", "b", "c", "never"], None)
    wide = np.column_stack([probabilities, np.zeros(400)])
    columns, rows = per_class_table(scores, wide, labels)
    row = dict(zip(columns, rows[0], strict=True))
    for name in ("precision", "recall", "f1"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert row["average_precision"] == pytest.approx(
        sklearn_metrics.average_precision_score(labels == 0, probabilities[:, 0])
    )
    never = dict(zip(columns, rows[3], strict=True))
    assert never["support"] == 0 and never["recall_low"] is None and never["average_precision"] is None
