"""A distilled student has learned its teacher's labels, and smaller variants are measured and read by predict."""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from finetune.__main__ import app
from finetune.data import load_examples
from finetune.linear import fit_tfidf
from finetune.predict import Classifier, predict
from finetune.recipe.ensemble import Ensemble, write_ensemble
from finetune.requested import data_of_run
from finetune.scores.calibration import Calibration
from finetune.smaller.config import StudentConfig, read_distil_config
from finetune.smaller.deployment import make_smaller
from finetune.smaller.distil import Student, build_student, distil, measure_importance, soft_labels
from finetune.smaller.measure import Measured, accuracy_interval, choose, measure, pareto_front, verdict
from finetune.smaller.shape import count_parameters
from finetune.smaller.variants import copy_other_files, size_in_bytes
from mini_llm.engine import loop
from mini_llm.engine.cli import run_app
from mini_llm.engine.errors import ConfigError
from mini_llm.model import load_model
from mini_llm.model.huggingface.directory import WEIGHTS
from tests.families import make_config
from tests.finetune.tiny_classifier import letters
from tests.models import randomized, tokens


@pytest.fixture(scope="module")
def student_run(teacher_run):
    """runs/teacher-distilled beside the teacher."""
    config = read_distil_config(teacher_run, ["epochs=10", "patience=null"], {})
    distil(config, teacher_run.parent)
    return teacher_run.parent / "teacher-distilled"


@pytest.mark.slow
def test_a_student_learns_its_teachers_labels_at_a_third_of_its_size(teacher_run, student_run):
    teacher, student = Classifier(teacher_run), Classifier(student_run)
    assert count_parameters(student.model.config) <= count_parameters(teacher.model.config) / 3
    texts = [text for text, _ in letters(300, seed=9)]
    labels = np.array([teacher.names.index(label) for _, label in letters(300, seed=9)])
    theirs, ours = teacher.probabilities(texts), student.probabilities(texts)
    right = [(found.argmax(-1) == labels).mean() for found in (theirs, ours)]
    assert right[1] >= 0.97 * right[0] > 0.8
    assert (theirs.argmax(-1) == ours.argmax(-1)).mean() > 0.9
    assert np.abs(theirs - ours).mean() < 0.1  # also its probabilities, not those of logits / temperature
    summary = json.loads((student_run / "summary.json").read_text())
    assert summary["scores"][0]["accuracy"] > 0.8 and summary["teacher_parameters"] > 3 * summary["parameters"]


@pytest.mark.slow
def test_a_killed_distillation_ends_as_an_undisturbed_one(teacher_run, tmp_path, monkeypatch):
    changes = ["max_steps=6", "evaluate_every=2", "save_every=2", "patience=null", "dropout=0.1", "run=student"]
    config = read_distil_config(teacher_run, changes, {})
    distil(config, tmp_path / "whole")

    step, steps = loop.train_step, []

    def killed(*arguments):
        steps.append(None)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            distil(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "student" / "model").exists()
    monkeypatch.setattr("finetune.smaller.distil.measure_importance", lambda *_: pytest.fail("measured again"))
    distil(config, tmp_path / "killed")
    weights = [(tmp_path / name / "student" / "model" / WEIGHTS).read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_a_distillation_takes_the_settings_of_its_teacher(teacher_run):
    config = read_distil_config(teacher_run, ["student.share=0.5", "seed=3"], {"run": "small", "budget": "1m"})
    assert (config.run_name, config.student.share, config.seed, config.budget) == ("small", 0.5, 3, "1m")
    assert config.data.test == data_of_run(teacher_run).test and config.teacher == "none"
    assert read_distil_config(teacher_run, [], {}).run_name == "teacher-distilled"
    with pytest.raises(ConfigError, match="from the teacher's run"):
        read_distil_config(teacher_run, ["other.yaml"], {})


def test_texts_that_the_teacher_has_no_time_for_are_left_out_and_stay_so(teacher_run, tmp_path, monkeypatch):
    teacher, texts = Classifier(teacher_run), [text for text, _ in letters(40)]
    whole = soft_labels(tmp_path / "whole", teacher, texts, 2.0)
    monkeypatch.setattr("finetune.smaller.distil.PORTION", 8)
    cut = soft_labels(tmp_path / "cut", teacher, texts, 2.0, seconds=0.0)
    known = ~np.isnan(cut[:, 0])
    assert known.sum() == 8 and np.allclose(cut[known], whole[known], atol=1e-6) and not np.isnan(whole).any()
    again = soft_labels(tmp_path / "cut", teacher, texts, 2.0)
    assert np.array_equal(again, cut, equal_nan=True), "a resumed run learns from the same texts"


def test_soft_labels_are_computed_once_and_anew_for_other_texts(teacher_run, tmp_path, monkeypatch):
    teacher, texts = Classifier(teacher_run), [text for text, _ in letters(12)]
    first = soft_labels(tmp_path / "labels", teacher, texts, 2.0)
    powers = teacher.probabilities(texts).astype(np.float64) ** 0.5
    assert np.allclose(first, powers / powers.sum(-1, keepdims=True), atol=1e-6)
    monkeypatch.setattr(teacher, "probabilities", lambda texts: pytest.fail("computed again"))
    assert np.array_equal(soft_labels(tmp_path / "labels", teacher, texts, 2.0), first)
    with pytest.raises(pytest.fail.Exception):
        soft_labels(tmp_path / "labels", teacher, texts[1:], 2.0)


def test_the_temperature_divides_logits_in_training_alone():
    student = randomized(Student(make_config("modernbert", "classifier", 0)))
    student.temperature = 4.0
    ids = tokens(2, 7)
    plain = student(ids)
    assert torch.allclose(student.train()(ids), plain / 4, atol=1e-6)


def test_a_student_of_the_teachers_size_starts_as_the_teacher(teacher_run):
    teacher = Classifier(teacher_run)
    found = measure_importance(teacher, load_examples(data_of_run(teacher_run)).validation)
    options = StudentConfig(share=1, layers=2, hidden_size=64)
    student = build_student(teacher.model, found, options).eval()
    ids = tokens(2, 7)
    assert torch.allclose(student(ids), teacher.model(ids), atol=1e-5)


def test_other_labels_and_encoder_decoders_are_refused(teacher_run, tmp_path):
    data = tmp_path / "other.csv"
    data.write_text("text,label\n" + "".join(f"{text},not {label}\n" for text, label in letters(40)))
    changes = [f"data.path={data}", "data.validation=null", "data.test=null", "run=refused"]
    with pytest.raises(ConfigError, match="the teacher's labels are lower, upper"):
        distil(read_distil_config(teacher_run, changes, {}), tmp_path)


# Variants, their table and the verdict


@pytest.fixture(scope="module")
def smaller(teacher_run, student_run, tmp_path_factory):
    """A copy of the teacher's run with all variants, and what was printed about them."""
    root = tmp_path_factory.mktemp("smaller")
    run = root / "teacher"
    shutil.copytree(teacher_run, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.smaller.measure.LATENCY_TEXTS", 4)
        patch.setattr("finetune.smaller.measure.ROUNDS", 1)
        return run, *make_smaller(run, [student_run], True, None, 0.05)


@pytest.mark.slow
def test_all_variants_are_measured_and_written(smaller):
    run, rows, words, page = smaller
    found = {row.name: row for row in rows}
    variants = ["fp16", "int8", "int4", "sparse", "pruned", "pruned-int8"]
    packed = ["teacher-distilled-int8", "teacher-distilled-int4"]
    assert list(found) == ["teacher", "teacher-distilled", *variants, *packed]
    sizes = {name: row.bytes for name, row in found.items()}
    assert sizes["int4"] < sizes["int8"] < sizes["fp16"] < sizes["pruned"] < sizes["teacher"]
    assert sizes["teacher-distilled-int4"] < sizes["teacher-distilled-int8"] < sizes["teacher-distilled"]
    for name, row in found.items():
        assert row.accuracy_low < row.accuracy <= row.accuracy_high, name
        assert row.difference == pytest.approx(row.accuracy - rows[0].accuracy), name
        assert row.p50_ms > 0 and row.texts_per_second > 0, name
    assert found["int8"].difference == pytest.approx(0, abs=0.01) and found["teacher"].difference_low == 0
    assert found["sparse"].weights < 0.6 * found["teacher"].weights
    table = json.loads((run / "tables" / "smaller.json").read_text())
    assert [row[0] for row in table["rows"]] == list(found) and table["columns"][:2] == ["name", "MB"]
    html = page.read_text()
    assert words.splitlines()[0][:40] in html and "http" not in html.replace("http://www.w3.org", "")
    ElementTree.parse(run / "pareto.svg")
    assert 'data-label="accuracy"' in (run / "smaller.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "sparse", "pruned", "pruned-int8", "teacher-distilled-int4"])
def test_predict_reads_every_variant(name, smaller, tmp_path):
    directory, texts = smaller[0] / "smaller" / name, [text for text, _ in letters(40, seed=3)]
    (tmp_path / "new.txt").write_text("\n".join(texts))
    output = tmp_path / "out.jsonl"
    predict(directory, str(tmp_path / "new.txt"), output=output)
    labels = [json.loads(line)["label"] for line in output.read_text().splitlines()]
    classifier = Classifier(directory)
    assert labels == [classifier.names[i] for i in classifier.probabilities(texts).argmax(-1)]
    whole = Classifier(smaller[0]).probabilities(texts)
    if name in ("fp16", "int8"):
        assert np.abs(classifier.probabilities(texts) - whole).max() < 0.04


@pytest.mark.slow
def test_a_packed_model_is_the_rounded_original(smaller):
    run = smaller[0]
    original, packed = (load_model(run / name).state_dict() for name in ("model", "smaller/int8"))
    difference = max(
        float((packed[name] - tensor).abs().max() / tensor.abs().max()) for name, tensor in original.items()
    )
    assert 0 < difference < 1 / 127


def test_linear_models_beside_a_transformer_count_in_their_own_row_alone(teacher_run, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(teacher_run / "model", directory)
    before = size_in_bytes(directory, with_linear=True)
    rows = letters(80, seed=5)
    texts, labels = [text for text, _ in rows], np.array([int(label == "upper") for _, label in rows])
    # A linear model that has learned the opposite.
    write_ensemble(directory, Ensemble([fit_tfidf(texts, 1 - labels, 2)], 1.0, Calibration()))
    assert size_in_bytes(directory, with_linear=False) == before < size_in_bytes(directory, with_linear=True)
    alone, pooled = measure({"alone": directory, "pooled": directory}, texts, labels, pooled=["pooled"])
    assert alone.accuracy > 0.8 and pooled.accuracy < 0.5 and alone.bytes == before < pooled.bytes
    copy_other_files(directory, tmp_path)
    assert not (tmp_path / "linear").exists() and (tmp_path / "tokenizer.json").exists()


def test_a_directory_that_is_no_run_is_an_error(teacher_run, capsys):
    with pytest.raises(SystemExit) as end:
        run_app(app, "finetune", ["smaller", str(teacher_run / "model")])
    assert end.value.code == 2 and "not a run of" in capsys.readouterr().err


def row(name, size, accuracy, low, milliseconds=1.0):
    values = {
        "directory": name,
        "bytes": size,
        "weights": 1,
        "accuracy": accuracy,
        "accuracy_low": 0,
        "accuracy_high": 1,
    }
    difference = accuracy - 0.9
    return Measured(name, **values, difference=difference, difference_low=low, difference_high=0.1, p50_ms=milliseconds,
                    texts_per_second=1.0)  # fmt: skip


def test_the_smallest_variant_that_is_shown_to_lose_little_is_deployed():
    rows = [
        row("whole", 100, 0.9, 0),
        row("int8", 30, 0.9, -0.01),
        row("int4", 20, 0.88, -0.04),
        row("tiny", 5, 0.8, -0.2),
    ]
    assert [choose(rows, limit).name for limit in (0, 0.02, 0.05, 0.3)] == ["whole", "int8", "int4", "tiny"]
    words = verdict(rows, 0.02, "200 test texts")
    assert words.startswith("Deploy int8") and "3.3 times smaller" in words and "If size matters more: int4" in words
    assert verdict(rows, 0, "200 test texts").startswith("Deploy whole itself")
    fast = [*rows, row("fast", 50, 0.9, -0.5, 0.1)]
    assert "If speed matters more: fast" in verdict(fast, 0.02, "200 test texts")
    better = [*rows, row("pooled", 200, 0.95, 0.01)]
    assert "If accuracy matters more: pooled" in verdict(better, 0.02, "200 test texts")
    assert "accuracy matters" not in verdict(rows, 0.02, "200 test texts")


def test_the_front_holds_what_nothing_beats():
    assert pareto_front([(1, 0.5), (2, 0.7), (3, 0.6), (2, 0.7), (4, 0.9)]) == {0, 1, 3, 4}


@pytest.mark.parametrize("accuracy", [0.5, 0.93])
def test_the_interval_is_that_of_the_bootstrap(accuracy):
    correct = np.arange(200) < 200 * accuracy
    draws = np.random.default_rng(0).choice(correct, (20_000, 200)).mean(-1)
    assert accuracy_interval(accuracy, 200) == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.006)
    assert accuracy_interval(1.0, 200)[0] < 0.99
