"""Every task from file to prediction, as tiny random models."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from finetune.__main__ import app
from finetune.config import FinetuneConfig
from finetune.predict import Classifier
from finetune.run import finetune
from finetune.tasks.commands import predict_task, score_task
from finetune.tasks.model import TaskModel
from finetune.tasks.registry import TASKS, detect, model_task
from mini_llm.engine import loop
from mini_llm.engine.cli import run_app
from mini_llm.engine.errors import CheckpointError, ConfigError
from tests.finetune.tasks.task_data import SETTINGS, rows, task_settings, write
from tests.finetune.tiny_classifier import QUIET, write_pretrained

# The others train for seconds more.
FAST = ("multi_label", "tokens")
EVERY = [pytest.param(task, marks=() if task in FAST else pytest.mark.slow) for task in TASKS]
AUTO = {
    "classifier": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "questions": AutoModelForQuestionAnswering,
}


@pytest.fixture(scope="module")
def pretrained(tiny_tokenizer, tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("pretrained"), tiny_tokenizer, max_position_embeddings=128)


@pytest.fixture(scope="module")
def trained(pretrained, tmp_path_factory):
    """The finished run of each task, trained when first asked for."""
    root, found = tmp_path_factory.mktemp("tasks"), {}

    def train(task):
        if task not in found:
            settings = task_settings(task, root / f"{task}.jsonl")
            config = FinetuneConfig(model=str(pretrained), run=task, max_steps=3, **settings, **QUIET)
            finetune(config, root / "runs")
            found[task] = root / "runs" / task
        return found[task]

    return train


def unlabelled(task, count):
    column = {"tokens": "text", "questions": "answers"}.get(task, "label")
    found = rows(task, count, seed=1)
    if task == "tokens":
        return [{"text": " ".join(row["tokens"])} for row in found]
    return [{key: value for key, value in row.items() if key != column} for row in found]


@pytest.mark.parametrize("task", EVERY)
def test_a_task_trains_predicts_and_scores(task, trained, tmp_path, capsys):
    run = trained(task)
    summary = json.loads((run / "summary.json").read_text())
    own, *baselines = summary["scores"]
    assert baselines and not own["baseline"] and all(row["baseline"] for row in baselines)
    for name in TASKS[task].metrics:
        assert own[f"{name}_low"] <= own[f"{name}_high"] and all(name in row for row in baselines), name
    assert model_task(run) == task

    path = write(tmp_path / "new.jsonl", unlabelled(task, 9))
    assert predict_task(run, str(path), output=tmp_path / "out.jsonl") == 9
    added = TaskModel(run).task.outputs()
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["row"] for row in found] == list(range(1, 10))
    for row, before in zip(found, given, strict=True):
        assert row == {**row, **before} and row.keys() == {"row", *before, *added}

    with pytest.raises(SystemExit) as stop:
        run_app(app, "finetune", ["predict", str(run), str(path), "--format", "csv"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and len(lines) == 10 and lines[0].split(",")[-len(added) :] == added

    labelled = write(tmp_path / "labelled.jsonl", rows(task, 20, seed=2))
    scores = score_task(run, str(labelled))["scores"]
    assert scores["examples"] == 20 and all(np.isfinite(scores[name]) for name in TASKS[task].metrics)


@pytest.mark.parametrize("task", EVERY)
def test_transformers_gives_the_same_logits(task, trained, assert_parity):
    model = TaskModel(trained(task))
    theirs = AUTO[model.task.head].from_pretrained(model.directory).eval()
    auto = AutoTokenizer.from_pretrained(model.directory)
    for values in unlabelled(task, 3):
        values = {key: text[:40] for key, text in values.items()}  # one window
        row = model.task.unlabelled({model.task.columns.text: values.get("text"), **values}, "row")
        text = [row.pair, row.text] if task == "questions" else [row.text, row.pair] if row.pair else [row.text]
        inputs = auto(*text, return_tensors="pt", truncation=True)
        (window,) = model.task.windows([row], model.encoder)
        assert inputs["input_ids"][0].tolist() == window.tokens.tolist()
        with torch.no_grad():
            ours = model.model(inputs["input_ids"].to(model.device)).cpu()
            output = theirs(**inputs)
        expected = torch.stack([output.start_logits, output.end_logits], -1) if task == "questions" else output.logits
        assert_parity("modernbert", type(theirs).__name__, task, (ours - expected).abs().max().item())


@pytest.mark.slow
def test_pipelines_of_transformers_run_the_models(trained):
    expected = TaskModel(trained("multi_label"))
    given = rows("multi_label", 2, seed=1)
    probabilities = expected.predict([expected.task.unlabelled(row, "row") for row in given])
    labels = pipeline("text-classification", str(expected.directory), top_k=None)
    for found, wanted in zip(labels([row["text"] for row in given]), probabilities, strict=True):
        scores = {part["label"]: part["score"] for part in found}
        assert [scores[name] for name in expected.task.names] == pytest.approx(wanted.tolist(), abs=1e-5)

    number = TaskModel(trained("regression"))
    found = pipeline("text-classification", str(number.directory))(given[0]["text"])[0]["score"]
    assert found == pytest.approx(number.predict([number.task.unlabelled(given[0], "row")])[0], rel=1e-5)

    tokens = TaskModel(trained("tokens"))
    text = "Anna saw Paris"
    entities = pipeline("token-classification", str(tokens.directory))(text)
    assert all(entity["entity"] in tokens.task.names and entity["end"] <= len(text) for entity in entities)


@pytest.mark.parametrize("task", EVERY)
def test_predictions_do_not_depend_on_the_batch(task, trained):
    model = TaskModel(trained(task))
    values = [{model.task.columns.text: row.get("text"), **row} for row in unlabelled(task, 12)]
    given = [model.task.unlabelled(row, "row") for row in values]
    alone, sevens, together = (
        [json.loads(json.dumps(model.task.output(row, found))) for row, found in zip(given, predictions, strict=True)]
        for predictions in (model.predict(given, size) for size in (1, 7, 64))
    )
    for one, seven, all_ in zip(alone, sevens, together, strict=True):
        assert flat(one) == pytest.approx(flat(seven), abs=2e-6) and flat(one) == pytest.approx(flat(all_), abs=2e-6)


def flat(tree):
    """Every number in `tree`, by its path."""
    if isinstance(tree, dict):
        return {f"{key}.{path}": value for key, part in tree.items() for path, value in flat(part).items()}
    if isinstance(tree, list):
        return flat(dict(enumerate(tree)))
    return {"": tree} if isinstance(tree, int | float) else {}


@pytest.mark.slow
def test_regression_returns_numbers_on_their_own_scale(trained):
    model = TaskModel(trained("regression"))
    numbers = model.predict([model.task.unlabelled(row, "row") for row in rows("regression", 20)])
    # Three steps do not teach the model much, but it knows the mean and the deviation.
    assert 900 < np.mean(numbers) < 1300
    summary = json.loads((trained("regression") / "summary.json").read_text())
    logged = [json.loads(line) for line in (trained("regression") / "metrics.jsonl").read_text().splitlines()]
    last = [row["val/rmse"] for row in logged if "val/rmse" in row][-1]
    assert summary["scores"][0]["rmse"] == pytest.approx(last, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["tokens", "regression"])
def test_a_resumed_run_equals_an_undisturbed_one(task, pretrained, tmp_path, monkeypatch):
    settings = task_settings(task, tmp_path / f"{task}.jsonl", 40)
    common = {"model": str(pretrained), "max_steps": 4, "save_every": 1, "batch_size": 8, **settings, **QUIET}
    finetune(FinetuneConfig(run="whole", **common), tmp_path)

    step = loop.train_step
    steps = []

    def stopping(*arguments):
        steps.append(1)
        if len(steps) == 3:
            raise InterruptedError
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", stopping)
    with pytest.raises(InterruptedError):
        finetune(FinetuneConfig(run="broken", **common), tmp_path)
    monkeypatch.setattr(loop, "train_step", step)
    finetune(FinetuneConfig(run="broken", **common), tmp_path)
    whole, broken = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes()


@pytest.mark.slow
def test_multi_label_probabilities_reach_the_known_optimum(pretrained, tmp_path):
    """Two texts whose labels are random: the best probability of a label is its share among the rows of the text."""
    shares = {"good film": (0.75, 0.25), "bad night": (0.25, 0.5)}
    content = [
        {"text": text, "label": [name for name, share in zip("xy", pair, strict=True) if (i * 3 + 1) % 4 < 4 * share]}
        for text, pair in shares.items()
        for i in range(40)
    ]
    data = {"path": str(write(tmp_path / "train.jsonl", content)), "leaks": "keep"}
    data["validation"] = str(write(tmp_path / "validation.jsonl", content))
    config = FinetuneConfig(
        model=str(pretrained),
        run="optimum",
        task="multi_label",
        data=data,
        epochs=80,
        batch_size=80,
        dropout=0,
        **QUIET,
    )
    finetune(config, tmp_path)
    model = TaskModel(tmp_path / "optimum")
    found = model.predict([model.task.unlabelled({"text": text}, "row") for text in shares])
    assert np.stack(found) == pytest.approx(np.array([*shares.values()]), abs=0.03)


@pytest.mark.parametrize(
    ("content", "data", "task"),
    [
        ({"tokens": ["a"], "tags": ["O"]}, {}, "tokens"),
        ({"context": "a", "question": "b", "answers": []}, {}, "questions"),
        ({"text": "a", "label": ["x"]}, {}, "multi_label"),
        ({"text": "a", "other": "b", "label": "x"}, {"text_pair": "other"}, "pairs"),
        ({"text": "a", "label": "x"}, {}, "single_label"),
        ({"text": "a", "label": 1.5}, {}, "single_label"),
    ],
)
def test_the_task_is_told_by_the_data(content, data, task, tmp_path):
    config = FinetuneConfig(data={"path": str(write(tmp_path / "data.jsonl", [content])), **data})
    assert detect(config.data) == task


def test_the_task_is_told_by_the_kind_of_file(tmp_path):
    (tmp_path / "a.conll").write_text("Paris B-LOC\n")
    (tmp_path / "a.json").write_text('{"version": "1.1", "data": [{"paragraphs": []}]}')
    found = [detect(FinetuneConfig(data={"path": str(tmp_path / name)}).data) for name in ("a.conll", "a.json")]
    assert found == ["tokens", "questions"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "tokens", "data": {"shots": 3}}, "data.shots works with task=single_label only"),
        ({"task": "regression", "metric": "entity_f1"}, "metric=entity_f1 does not apply to task=regression"),
        ({"metric": "rmse"}, "metric=rmse does not apply to single labels"),
        ({"task": "regression", "class_weights": "balanced"}, "class_weights=balanced does not apply"),
        ({"task": "single_label", "data": {"text_pair": "b"}}, "data.text_pair needs task=pairs"),
        ({"task": "ordinal", "data": {"path": "stdlib"}}, "the built-in task is task=single_label"),
    ],
)
def test_settings_that_a_task_does_not_have_are_refused(settings, message, pretrained, tmp_path):
    data = {"path": str(write(tmp_path / "a.jsonl", rows("regression", 10)))} | settings.pop("data", {})
    with pytest.raises(ConfigError, match=message):
        finetune(FinetuneConfig(model=str(pretrained), run="a", data=data, **settings, **QUIET), tmp_path)


@pytest.mark.slow
def test_other_commands_name_the_right_one_for_a_model_of_a_task(trained):
    with pytest.raises(CheckpointError, match="a model of task=ordinal, not a classifier with single labels"):
        Classifier(trained("ordinal"))
    with pytest.raises(SystemExit) as stop:
        run_app(app, "finetune", ["predict", str(trained("ordinal")), "new.csv", "--top-k", "2"])
    assert stop.value.code == 2


def test_every_task_has_its_settings():
    assert SETTINGS.keys() == TASKS.keys()
