"""Cross-validation scores every row once, by a model that has not seen it, and goes on after a kill."""

import json

import numpy as np
import pytest

from finetune.crossvalidation import run as module
from finetune.crossvalidation.plan import read_plan
from finetune.crossvalidation.run import cross_validate
from finetune.crossvalidation.scores import ALONE, PREDICT, print_cross_validation
from finetune.data import load_examples
from finetune.data_config import DataConfig
from finetune.tasks.reading import read_parts
from finetune.tasks.registry import TASKS
from mini_llm.engine.config import build_config
from mini_llm.engine.errors import ConfigError, DataError
from mini_llm.engine.report.record import Run
from tests.finetune.tasks.task_data import SETTINGS, write
from tests.finetune.tasks.task_data import rows as task_rows
from tests.finetune.tiny_classifier import letters, write_pretrained, write_rows

QUIET = ["tracking.wandb=disabled", "runtime.precision=fp32", "runtime.device=cpu"]


def parts_of(path, folds, **settings):
    """The splits of each fold."""
    found = {"path": str(path), **settings}
    return [load_examples(DataConfig(**found, fold=f"{number}/{folds}")) for number in range(1, folds + 1)]


def test_the_folds_hold_every_row_once_and_training_none_of_them(tmp_path):
    rows = letters(90)
    rows += rows[:6]  # repeated rows stand in the fold of the first
    parts = parts_of(write_rows(tmp_path / "data.csv", rows), 4)
    scored = [example for splits in parts for example in splits.test]
    assert sorted(example.source for example in scored) == sorted(f"{tmp_path}/data.csv row {n}" for n in range(1, 97))
    for splits in parts:
        unseen = {example.text for example in splits.test}
        assert not unseen & {example.text for example in (*splits.train, *splits.validation)}
        assert 20 <= len(splits.test) <= 28 and len(splits.train) + len(splits.validation) + len(splits.test) == 96
        assert 9 <= sum(example.label for example in splits.test) <= 15


def test_rows_of_one_group_stand_in_one_fold(tmp_path):
    path = tmp_path / "data.csv"
    lines = [f"{text},{label},writer {i // 5}" for i, (text, label) in enumerate(letters(60))]
    path.write_text("\n".join(["text,label,author", *lines]) + "\n")
    folds = [{example.group for example in splits.test} for splits in parts_of(path, 3, group="author")]
    assert all(folds) and len(set.union(*folds)) == sum(map(len, folds)) == 12


def test_test_files_are_not_opened(tmp_path):
    write_rows(tmp_path / "train.csv", letters(40))
    (tmp_path / "test.csv").write_bytes(b"\xff\xfe\x00 this is no table")
    assert sum(len(splits.test) for splits in parts_of(tmp_path, 2)) == 40


def test_a_label_with_one_row_is_scored_too(tmp_path):
    parts = parts_of(write_rows(tmp_path / "data.csv", [*letters(30), ("1 2 3", "digits")]), 3)
    assert sum(example.label == 0 for splits in parts for example in splits.test) == 1
    assert all(splits.names == ["digits", "lower", "upper"] for splits in parts)


@pytest.mark.parametrize("task", SETTINGS)
def test_rows_of_another_task_are_divided_too(task, tmp_path):
    path = write(tmp_path / "data.jsonl", task_rows(task, 50))
    places = []
    for number in (1, 2, 3):
        parts = read_parts(TASKS[task](DataConfig(path=str(path), **SETTINGS[task], fold=f"{number}/3")))
        places += [row.place for row in parts.test]
        assert not {row.text for row in parts.test} & {row.text for row in (*parts.train, *parts.validation)}
    assert len(places) == len(set(places)) == 50


def test_more_folds_than_texts_are_a_clear_error(tmp_path):
    path = write_rows(tmp_path / "data.csv", letters(6))
    with pytest.raises(DataError, match="6 rows hold 6 different texts, too few for 7 folds"):
        parts_of(path, 7)


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "a/b", "2/5/1", ""])
def test_a_fold_that_is_none_is_a_clear_error(fold):
    with pytest.raises(ConfigError, match="write 2/5 for the second of five folds"):
        build_config(DataConfig, {"path": "data.csv", "fold": fold}, "test")


@pytest.mark.parametrize(
    ("arguments", "budget", "words"),
    [
        (["data.path=a.csv", "data.test=b.csv"], "1m", "leave out test"),
        (["data.path=a.csv", "data.fold=1/3"], "1m", "--folds"),
        ([], "1m", "built-in task"),
        (["data.path=a.csv"], "20s", "longer --budget"),
        (["data.path=a.csv"], "soon", "invalid duration"),
    ],
)
def test_a_cross_validation_that_cannot_be_run_is_a_clear_error(arguments, budget, words):
    with pytest.raises(ConfigError, match=words):
        read_plan(arguments, {"budget": budget}, 5, True)


def test_a_budget_among_the_settings_wins_over_the_flag():
    cases = ["data.path=a.csv"], ["data.path=a.csv", "budget=6m"]
    assert [read_plan(given, {"budget": "3m"}, 5, True).seconds for given in cases] == [27, 54]


@pytest.fixture
def plan(tiny_tokenizer, tmp_path):
    model = write_pretrained(tmp_path / "pretrained", tiny_tokenizer, hidden_size=32, num_hidden_layers=1)
    data = write_rows(tmp_path / "data.csv", letters(60))
    settings = [f"model={model}", f"data.path={data}", "run=few", "max_steps=4", "mixed_texts=0", *QUIET]
    return read_plan(settings, {"budget": "2m"}, 3, True)


@pytest.mark.slow
def test_the_scores_are_those_of_all_rows(plan, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    found = cross_validate(plan, runs)
    rows = {row["name"]: row for row in found["rows"]}
    correct = {"probabilities": [], "pooled": []}
    for number in (1, 2, 3):
        folder = runs / "few-folds" / f"few-fold-{number}"
        head, *lines = (folder / "tables" / "predictions.jsonl").read_text().splitlines()
        names = json.loads(head)["labels"]
        for line in map(json.loads, lines):
            for kind, answers in correct.items():
                answers.append(names[int(np.argmax(line.get(kind, line["probabilities"])))] == line["label"])
    assert len(correct["pooled"]) == found["examples"] == found["scores"]["examples"] == 60
    assert rows[ALONE]["accuracy"] == pytest.approx(np.mean(correct["probabilities"]))
    assert (
        rows.get(PREDICT, rows[ALONE])["accuracy"]
        == pytest.approx(np.mean(correct["pooled"]))
        == found["scores"]["accuracy"]
    )
    assert rows["majority class"]["accuracy"] == pytest.approx(0.5, abs=0.1) and rows["majority class"]["baseline"]
    assert rows["TF-IDF + logistic regression"]["accuracy"] > 0.7
    assert [row["support"] for row in found["per_class"]] == [30, 30]
    assert Run(runs / "few-folds").score_rows()[0]["accuracy"] == rows[ALONE]["accuracy"]
    # The last run has all rows.
    assert json.loads((runs / "few" / "summary.json").read_text())["scored_on"] == "validation"
    monkeypatch.setattr("finetune.run.train_classifier", lambda *_: pytest.fail("trained again"))
    assert cross_validate(plan, runs) == found
    print_cross_validation(found, as_json=False)
    assert "60 rows in 3 folds" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_one_goes_on_with_the_folds_that_are_left(plan, tmp_path, monkeypatch):
    whole = cross_validate(plan, tmp_path / "whole")
    original, trained = module.finetune, []

    def dies_in_the_third(config, runs):
        trained.append(config.run_name)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return original(config, runs)

    monkeypatch.setattr(module, "finetune", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(plan, tmp_path / "killed")
    again = cross_validate(plan, tmp_path / "killed")
    assert again["rows"] == whole["rows"] and again["confusion"] == whole["confusion"]
