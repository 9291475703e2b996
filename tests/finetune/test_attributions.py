"""Attributions sum to the difference of the logits, and the page of errors shows the worst mistakes."""

import json
import shutil

import numpy as np
import pytest
import torch

from finetune.__main__ import app
from finetune.attributions.gradients import attribute, empty_embedding
from finetune.attributions.mistakes import choose_mistakes, collect_errors, words
from finetune.attributions.page import strongest, write_errors
from finetune.linear import fit_tfidf
from finetune.predict import Classifier
from finetune.recipe.ensemble import Ensemble, write_ensemble
from finetune.scores.calibration import Calibration
from mini_llm.engine.cli import run_app
from mini_llm.engine.errors import ConfigError
from mini_llm.model import SequenceClassifier
from tests.families import make_config
from tests.finetune.tiny_classifier import letters, write_rows
from tests.models import randomized, tokens


@pytest.mark.parametrize("family", ["modernbert", "bert", "qwen3", "gpt2", "t5"])
@pytest.mark.parametrize("mask_id", [None, 9])
def test_attributions_sum_to_the_difference_of_the_logits(family, mask_id):
    """Completeness, in a text with a special token at each end."""
    model = randomized(SequenceClassifier(make_config(family, "classifier", 0)))
    ids = np.array([1, *tokens(9)[:9].tolist(), 2])
    fixed, empty = frozenset({1, 2, 3}), empty_embedding(model, mask_id)
    found = attribute(model, ids, 0, 2, fixed, empty)
    with torch.no_grad():
        logits = model(torch.tensor(ids)[None], torch.ones(1, 11, dtype=torch.long))[0]
    assert found.value == pytest.approx(float(logits[0] - logits[2]), abs=1e-4)
    assert found.error < 0.02 * max(abs(found.value - found.baseline), 0.1)
    assert found.scores[0] == found.scores[-1] == 0 and np.abs(found.scores[1:-1]).min() > 0
    # The hook is gone, and the other direction is the negative.
    with torch.no_grad():
        assert torch.equal(model(torch.tensor(ids)[None], torch.ones(1, 11, dtype=torch.long))[0], logits)
    assert attribute(model, ids, 2, 0, fixed, empty).scores == pytest.approx(-found.scores, abs=1e-4)


def test_a_token_of_the_baseline_gets_nothing():
    model = randomized(SequenceClassifier(make_config("modernbert", "classifier", 0)))
    ids = np.array([1, 20, 9, 21, 2])
    found = attribute(model, ids, 0, 1, frozenset({1, 2}), empty_embedding(model, 9))
    assert found.scores[2] == 0 and found.scores[1] and found.scores[3]


def test_the_words_are_the_text_and_keep_the_sum(teacher_run):
    classifier = Classifier(teacher_run)
    text = "def two(x):  return caf\u00e9"
    ids = np.array([classifier.tokenizer.cls_id, *classifier.tokenizer.encode(text), classifier.tokenizer.sep_id])
    scores = np.random.default_rng(0).normal(size=len(ids))
    found = words(classifier.tokenizer, ids, scores)
    assert "".join(word.text for word in found).strip() == text
    assert [word.text.strip() for word in found if word.text.strip()] == text.split()
    assert sum(word.score for word in found) == pytest.approx(scores.sum())
    assert max(abs(word.share) for word in found) == 1
    assert strongest(found, 1)[0].score == max(word.score for word in found if word.text.strip())


def test_the_most_confident_mistakes_of_each_class_are_chosen():
    labels = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.array(
        [[0.1, 0.8, 0.1], [0.05, 0.9, 0.05], [0.9, 0.1, 0], [0.6, 0.2, 0.2], [0.1, 0.2, 0.7], [0, 0, 1]]
    )
    assert choose_mistakes(labels, probabilities, 2) == {0: [1, 0], 1: [4, 3]}
    assert choose_mistakes(labels, probabilities, 1) == {0: [1], 1: [4]}


def test_the_page_shows_mistakes_and_a_planted_label_error(teacher_run, tmp_path):
    """The last row of the test file is plain, but its label is wrong: the most confident mistake, and suspect."""
    run = tmp_path / "teacher"
    shutil.copytree(teacher_run, run)
    rows = [*letters(60, seed=4), ("a b c d e f g h i <c> j k l m a b c d e f g", "upper")]
    test = write_rows(tmp_path / "test.csv", rows)
    for name in ("requested.yaml", "config.yaml"):
        text = (run / name).read_text()
        line = next(line for line in text.splitlines() if line.strip().startswith("test:"))
        (run / name).write_text(text.replace(line, f"  test: {test}"))
    errors = collect_errors(run, 3)
    assert errors.part == "test" and errors.rows == 61 and errors.support == {"lower": 30, "upper": 31}
    worst = next(mistake for mistake in errors.mistakes["upper"] if mistake.source.endswith("row 61"))
    assert worst.predicted == "lower" and worst.probability > 0.8
    assert sum(word.score for word in worst.words) == pytest.approx(worst.value - worst.baseline, rel=0.05)
    assert len(errors.mistakes["upper"]) <= 3 and errors.wrong["upper"] >= 1
    assert worst.source in [row.source for row in errors.suspects["test, by this classifier"]]
    page = write_errors(run, errors).read_text()
    assert "&lt;c&gt;" in page and "<c>" not in page and "test.csv row 61" in page
    assert "http" not in page and "<script" not in page and 'name="viewport"' in page


def test_errors_and_comparisons_judge_what_predict_gives(teacher_run, tmp_path, capsys):
    run = tmp_path / "pooled"
    shutil.copytree(teacher_run, run)
    rows = letters(80, seed=5)
    texts, labels = [text for text, _ in rows], np.array([int(label == "upper") for _, label in rows])
    # A linear model that has learned the opposite, alone in the pool.
    write_ensemble(run / "model", Ensemble([fit_tfidf(texts, 1 - labels, 2)], 1.0, Calibration()))
    found, alone = collect_errors(run, 1), collect_errors(run, 1, alone=True)
    assert sum(found.wrong.values()) > 100 > sum(alone.wrong.values())
    assert found.pool == "TF-IDF + logistic regression (weight 1.00)" and alone.pool == ""
    page = [write_errors(run, errors).read_text() for errors in (found, alone)]
    assert ["pooled with TF-IDF + logistic regression (weight 1.00)" in text for text in page] == [True, False]
    data = str(write_rows(tmp_path / "test.csv", letters(60, seed=6)))
    for flags, better in ([], True), (["--alone"], False):
        app(["compare", str(run), str(teacher_run), "--data", data, "--json", *flags], standalone_mode=False)
        (pair,) = json.loads(capsys.readouterr().out)["pairs"]
        assert (pair["accuracy_b"] > pair["accuracy_a"] + 0.5) == better and pair["pooled"] == [better, False]


def test_compare_names_its_flags(teacher_run, tmp_path, capsys):
    data = write_rows(tmp_path / "test.csv", [*letters(60, seed=6), ("x", "")])
    arguments = ["compare", str(teacher_run), str(teacher_run), "--data", str(data), "--json"]
    with pytest.raises(SystemExit) as stop:
        run_app(app, "finetune", arguments)
    assert stop.value.code == 3 and "skip such rows with --on-null skip" in capsys.readouterr().err
    app([*arguments, "--on-null", "skip"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["pairs"][0]["rows"] == 60


def test_a_model_without_its_run_is_a_clear_error(teacher_run):
    with pytest.raises(ConfigError, match="not a run of"):
        collect_errors(teacher_run / "model", 3)
