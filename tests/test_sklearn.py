"""The scikit-learn interface: fit, predict, predict_proba, cross-validation, labels of any hashable type."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

import mini_llm
from mini_llm.engine.errors import ConfigError, DataError
from mini_llm.model import CausalLM, ModelConfig, save_model
from mini_llm.sklearn import TextClassifier, as_array, distinct_labels, label_names
from mini_llm.tokenization.save import save_tokenizer

TEXTS = [f"{i} {word}" for i in range(12) for word in ("def", "class")]
LABELS = [word for _ in range(12) for word in ("one", "two")]
FAST = {"max_steps": 30, "optim.lr": 1e-2, "dropout": 0, "runtime.precision": "fp32", "teacher": "none"}
FAST |= {"patience": None, "data.near_duplicates": False}


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    """A causal language model with random weights."""
    directory = tmp_path_factory.mktemp("runs") / "gpt" / "model"
    sizes = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    tokens = {"max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    torch.manual_seed(0)
    save_model(CausalLM(ModelConfig(**sizes, **tokens, causal=True)), directory)
    save_tokenizer(tiny_tokenizer, directory, "causal")
    return directory


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Nothing is written to the current directory unless a run is named."""
    monkeypatch.chdir(tmp_path)


def classifier(model, **changes):
    return TextClassifier(**{"model": model, "budget": None, "settings": FAST, **changes})


def test_three_lines(model, tmp_path, capfd):
    fitted = classifier(model).fit(TEXTS, LABELS)
    assert fitted.predict(["40 def", "41 class"]).tolist() == ["one", "two"]
    probabilities = fitted.predict_proba(TEXTS)
    assert probabilities.shape == (24, 2) and probabilities.dtype == np.float64
    assert probabilities.sum(1) == pytest.approx(np.ones(24)) and fitted.score(TEXTS, LABELS) == 1
    assert fitted.classes_.tolist() == ["one", "two"] and "validation/accuracy" in fitted.scores_
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "classes",
    [
        (5, 3),
        ("grade 10", "grade 2"),
        (1.5, -2.0),
        (True, False),
        (("a", 1), ("b",)),
        (b"x", "x"),
        (2, "2"),
        (" a", "a"),
        (" a", "b"),
        ("b\ufffd", "c"),
    ],
    ids=str,
)
def test_labels_of_any_type_come_back(model, classes):
    labels = [classes[label == "two"] for label in LABELS]
    fitted = classifier(model).fit(TEXTS, labels)
    found = fitted.predict(TEXTS).tolist()
    assert found == labels and list(map(type, found)) == list(map(type, labels))
    best = fitted.predict_proba(TEXTS).argmax(1)
    assert [fitted.classes_.tolist()[index] for index in best] == labels


def test_a_fitted_classifier_survives_the_copies_that_joblib_makes(model):
    fitted = classifier(model).fit(TEXTS, LABELS)
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predict_proba(TEXTS) == fitted.predict_proba(TEXTS)).all()


def test_arrays_and_columns_of_tables(model):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": [label == "two" for label in LABELS]})
    fitted = classifier(model).fit(frame["text"], frame["label"])
    assert fitted.predict(np.array(TEXTS)).tolist() == frame["label"].tolist()
    assert fitted.classes_.dtype == bool


def test_parameters_are_those_of_scikit_learn(model):
    first = classifier(model, seed=7)
    again = clone(first)
    assert again.get_params() == first.get_params() and again is not first
    assert set(first.get_params()) == {"model", "budget", "run", "seed", "settings", "batch_size", "verbose"}
    assert first.set_params(budget="5s").budget == "5s"
    with pytest.raises(NotFittedError):
        first.predict(["a"])


@pytest.mark.slow
def test_cross_validation_and_grid_search(model, tmp_path):
    scores = cross_val_score(classifier(model), TEXTS, LABELS, cv=2, error_score="raise")
    assert scores.tolist() == [1, 1]
    losses = cross_val_score(classifier(model), TEXTS, LABELS, cv=2, scoring="neg_log_loss", error_score="raise")
    assert (losses > -0.7).all()
    grid = {"settings": [{**FAST, "weights": "random", "optim.lr": rate} for rate in (1e-6, 1e-2)]}
    search = GridSearchCV(classifier(model), grid, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert search.best_params_["settings"]["optim.lr"] == 1e-2 and search.best_score_ == 1
    assert list(tmp_path.iterdir()) == []


def test_a_named_run_is_kept_and_not_overwritten(model):
    settings = {**FAST, "tracking.wandb": "disabled"}
    fitted = classifier(model, run="words", settings=settings).fit(TEXTS, LABELS)
    kept = mini_llm.load("runs/words")
    assert kept.labels == ["one", "two"]
    assert kept.classify("40 def").probability == pytest.approx(fitted.predict_proba(["40 def"]).max())
    before = Path("runs/words/model/model.safetensors").stat().st_mtime_ns
    assert classifier(model, run="words", settings=settings).fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1
    assert Path("runs/words/model/model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="words"):
        classifier(model, run="words", settings=settings).fit(TEXTS, LABELS[::-1])


def test_a_temporary_run_is_not_sent_to_wandb(model, monkeypatch):
    given = []

    def record(runs, settings):
        given.append(settings)
        raise InterruptedError

    monkeypatch.setattr("mini_llm.sklearn.finetune_in", record)
    for changes in ({}, {"run": "words"}, {"settings": {"tracking.wandb": "offline"}}):
        with pytest.raises(InterruptedError):
            classifier(model, **{"settings": None, **changes}).fit(TEXTS, LABELS)
    assert [settings.get("tracking.wandb") for settings in given] == ["disabled", None, "offline"]


def test_the_log_is_printed_when_asked_for(model, capfd):
    classifier(model, verbose=True, settings={**FAST, "max_steps": 1}).fit(TEXTS, LABELS)
    assert "accuracy" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("one text", ["a"], "put it into a list"),
        (["a", 3], ["a", "b"], "text 1 is a int"),
        ([["a"], ["b"]], ["a", "b"], "text 0 is a list"),
        (["a", "b"], ["a"], "2 texts but 1 labels"),
        (["a", "b"], ["a", None], "label 1 is missing"),
        (["a", "b"], [1.0, float("nan")], "label 1 is missing"),
        (["a", "b"], [["a"], ["b"]], "must be hashable"),
        (["a", "b"], ["a", "a"], "at least two"),
        ([], [], "at least two"),
        (["a", " ", "b", "c"], ["a", "a", "b", "b"], "'text' is empty in 1 of 4 rows: row 2"),
    ],
)
def test_errors(model, texts, labels, message):
    with pytest.raises(DataError, match=message):
        classifier(model).fit(texts, labels)


def test_wrong_settings_and_models_are_errors_of_the_command_line(model):
    with pytest.raises(ConfigError, match="optim"):
        classifier(model, settings={"optim.rate": 1}).fit(TEXTS, LABELS)
    with pytest.raises(Exception, match="nowhere") as error:
        classifier("runs/nowhere").fit(TEXTS, LABELS)
    assert error.value.exit_code == 4


def test_classes():
    assert distinct_labels(["b", 1, "a", 1]) == [1, "a", "b"]
    assert label_names([1, "1"]) == ["class 0", "class 1"] and label_names([10, 9]) == ["10", "9"]
    assert as_array([("a", 1), ("b", 2)]).tolist() == [("a", 1), ("b", 2)]
    assert as_array([1, 2]).dtype == np.int64 and as_array([1, "1"]).dtype == object
