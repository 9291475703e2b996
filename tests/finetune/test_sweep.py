"""A sweep tries every combination, never opens the test data, resumes, and trains the winner once more."""

import json

import numpy as np
import pytest

from finetune.data import load_examples
from finetune.data_config import DataConfig
from finetune.examples import Example, Splits
from finetune.sweeping.grid import read_sweep, trial_name
from finetune.sweeping.trials import group_by_setting, run_sweep, run_trials
from mini_llm.engine.errors import ConfigError, DataError
from tests.finetune.tiny_classifier import letters, write_pretrained, write_rows

QUIET = ["tracking.wandb=disabled", "runtime.precision=fp32", "runtime.device=cpu", "teacher=none", "dropout=0"]


@pytest.fixture
def arguments(tiny_tokenizer, tmp_path):
    """The arguments of a sweep on data with a test file."""
    model = write_pretrained(tmp_path / "pretrained", tiny_tokenizer, hidden_size=32, num_hidden_layers=1)
    train = write_rows(tmp_path / "train.csv", letters(80))
    validation = write_rows(tmp_path / "validation.csv", letters(40, seed=1))
    test = write_rows(tmp_path / "test.csv", letters(40, seed=2))
    data = [f"data.path={train}", f"data.validation={validation}", f"data.test={test}"]
    return [f"model={model}", *data, *QUIET, "max_steps=4", "run=best", "optim.lr=1e-6,3e-3", "seed=1,2"]


def test_every_combination_is_a_trial_with_an_equal_share_of_the_time():
    sweep = read_sweep(["optim.lr=1e-4,3e-4", "seed=1,2,3", "dropout=0"], {"model": "runs/mlm"}, "70s")
    trials = sweep.trials()
    assert len(trials) == 6 and trials[1] == {"optim.lr": "1e-4", "seed": "2"}
    configs = [sweep.config(trial) for trial in trials]
    assert [(c.optim.lr, c.seed) for c in configs] == [(lr, seed) for lr in (1e-4, 3e-4) for seed in (1, 2, 3)]
    assert all(c.budget == "9s" and c.dropout == 0 and c.model == "runs/mlm" for c in configs)
    assert len({c.run_name for c in configs}) == 6 and sweep.name == "mlm-classifier-sweep"
    assert trial_name({"data.path": "a/b c.csv", "seed": "1"}) == "path-a-b-c.csv.seed-1"


def test_a_budget_among_the_settings_wins_over_the_flag():
    assert [read_sweep(["seed=1,2", *given], {}, "5m").seconds for given in ([], ["budget=10m"])] == [90, 180]


def test_a_list_in_brackets_is_one_value():
    sweep = read_sweep(['data.unlabelled=["a.txt", "b.txt"]', "seed=1,2"], {}, "1m")
    assert sweep.base.data.unlabelled == ["a.txt", "b.txt"] and list(sweep.grid) == ["seed"]


@pytest.mark.parametrize(
    ("arguments", "budget", "words"),
    [
        (["seed=1"], "1m", "nothing to sweep"),
        (["seed=1,1"], "1m", "repeated"),
        (["seed=1,,2"], "1m", "empty"),
        (["data.test=a.csv,b.csv"], "1m", "data.test cannot be swept"),
        (["data.fold=1/3,2/3"], "1m", "data.fold cannot be swept"),
        (["budget=1m,2m"], "1m", "budget cannot be swept"),
        (["seed=1,2,3,4,5,6,7"], "30s", "longer --budget"),
        (["optim.lr=1e-4,fast"], "1m", "optim.lr"),
        (["optim.rate=1,2"], "1m", "optim.rate"),
        (["seed=1,2"], "soon", "invalid duration"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_a_clear_error(arguments, budget, words):
    with pytest.raises(ConfigError, match=words):
        read_sweep(arguments, {}, budget)


@pytest.mark.slow
def test_the_best_setting_is_trained_again_and_scored_once(arguments, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    sweep = read_sweep(arguments, {}, "2m")
    settings, scores = run_sweep(sweep, runs)
    assert len(settings) == 2 and settings[0].merit >= settings[1].merit
    chosen = settings[0].values["optim.lr"]
    assert scores["test/examples"] == 40 and (runs / "best" / "model" / "config.json").is_file()
    summary = json.loads((runs / "best" / "summary.json").read_text())
    assert summary["scored_on"] == "test"
    trials = runs / "best-trials"
    for trial in sweep.trials():
        folder = trials / trial_name(trial)
        recorded = json.loads((folder / "finished.json").read_text())["scores"]
        assert set(recorded) == {"val/loss", "val/accuracy", "val/macro_f1", "val/mcc"}
        assert not (folder / "tables" / "predictions.jsonl").exists()
    table = json.loads((trials / "tables" / "sweep.json").read_text())
    assert table["columns"][:3] == ["optim.lr", "seeds", "validation_accuracy_mean"]
    accuracies = [
        json.loads((trials / f"lr-{chosen}.seed-{seed}" / "finished.json").read_text())["scores"]["val/accuracy"]
        for seed in (1, 2)
    ]
    assert table["rows"][0][:2] == [chosen, "1, 2"]
    assert table["rows"][0][2:4] == pytest.approx([np.mean(accuracies), np.std(accuracies, ddof=1)])
    best = max((1, 2), key=lambda seed: accuracies[seed - 1])
    assert f"seed: {best}\n" in (runs / "best" / "config.yaml").read_text()
    # Again: nothing is trained.
    monkeypatch.setattr("finetune.sweeping.trials.train_classifier", lambda *_: pytest.fail("trained again"))
    again, same = run_sweep(sweep, runs)
    assert again == settings and same == scores
    with pytest.raises(ConfigError, match="another configuration"):
        run_sweep(read_sweep([*arguments, "seed=1,2,3"], {}, "2m"), runs)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_trials_that_are_left(arguments, tmp_path, monkeypatch):
    from finetune.sweeping import trials as module

    whole = run_trials(read_sweep(arguments, {}, "2m"), tmp_path / "whole")
    original, trained = module.train_classifier, []

    def dies_in_the_third(config, *rest):
        trained.append(config.run_name)
        if len(trained) == 3:
            raise KeyboardInterrupt
        original(config, *rest)

    monkeypatch.setattr(module, "train_classifier", dies_in_the_third)
    sweep = read_sweep(arguments, {}, "2m")
    with pytest.raises(KeyboardInterrupt):
        run_trials(sweep, tmp_path / "killed")
    assert run_trials(sweep, tmp_path / "killed") == whole
    assert len(trained) == 5 and trained[2] == trained[3]


@pytest.mark.parametrize("kind", ["named", "in the folder"])
def test_trials_never_read_the_test_file(kind, arguments, tmp_path):
    test = tmp_path / "test.csv"
    # In a folder, a test file without labels is left out.
    test.write_bytes(b"\xff\xfe\x00 this is no table" if kind == "named" else b"text,label\na b,unknown\n")
    if kind == "in the folder":
        folder = tmp_path / "data"
        folder.mkdir()
        for name in ("train", "validation", "test"):
            (tmp_path / f"{name}.csv").rename(folder / f"{name}.csv")
        arguments = [a for a in arguments if not a.startswith("data.")] + [f"data.path={folder}"]
    arguments = [a for a in arguments if not a.startswith(("seed", "max_steps"))] + ["max_steps=1"]
    sweep = read_sweep(arguments, {}, "2m")
    assert len(run_trials(sweep, tmp_path / "runs")) == 2
    with pytest.raises(DataError, match=r"test\.csv"):
        run_sweep(sweep, tmp_path / "runs")


def test_the_built_in_task_has_no_test_part_in_trials(monkeypatch):
    rows = [Example(text, index % 2, f"row {index}") for index, (text, _) in enumerate(letters(60))]
    whole = Splits(["a", "b"], rows[:40], rows[40:50], rows[50:])
    monkeypatch.setattr("finetune.data.load_stdlib_task", lambda seed: whole)
    assert load_examples(DataConfig(), with_test=False).test is None


@pytest.mark.parametrize(("metric", "best"), [("accuracy", "b"), ("loss", "a")])
def test_settings_are_ordered_by_their_mean_then_by_the_loss(metric, best):
    rows = [("a", 1, 0.8, 0.1), ("a", 2, 0.6, 0.3), ("b", 1, 0.7, 0.4), ("b", 2, 0.9, 0.2), ("c", 1, 0.8, 0.9)]
    trials = [{"x": name, "seed": str(seed)} for name, seed, _, _ in rows]
    found = group_by_setting(trials, [{"val/accuracy": a, "val/loss": loss} for *_, a, loss in rows], metric)
    assert found[0].values == {"x": best}
    if metric == "accuracy":
        assert [setting.values["x"] for setting in found] == ["b", "c", "a"]  # b and c: 0.8, but c has more loss
        assert found[0].best_trial() == {"x": "b", "seed": "2"}
        assert found[0].deviation == pytest.approx(0.1414, abs=1e-3) and found[1].deviation is None
    else:
        assert found[0].best_trial() == {"x": "a", "seed": "1"}
