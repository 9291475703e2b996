"""Pretraining that goes on with the texts of the task before fine-tuning."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate import PartialState
from rich.console import Console

import finetune.recipe.continued_pretraining as module
from finetune.config import FinetuneConfig
from finetune.examples import Example, Splits
from finetune.recipe.continued_pretraining import check_continues, continue_pretraining, fine_tuned_from, own_texts
from finetune.recipe.pretrained_tokens import pretrained_briefly, pretrained_tokens
from finetune.run import finetune
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from tests.finetune.tiny_classifier import QUIET, letters, write_pretrained, write_rows


def write_run(folder: Path, tokenizer, tokens: int, init: str | None = None, **changes) -> Path:
    """A run that pretrained a tiny masked language model; returns its model directory."""
    model = write_pretrained(folder / "model", tokenizer, **changes)
    (folder / "summary.json").write_text(json.dumps({"tokens": tokens, "parameters": 100}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"init": init}))
    return model


def splits(count: int = 200) -> Splits:
    rows = [Example(text, label == "upper", f"row {i}") for i, (text, label) in enumerate(letters(count))]
    return Splits(["lower", "upper"], rows, rows[:10])


def config(model: Path, **changes) -> FinetuneConfig:
    return FinetuneConfig(**{"model": str(model), **QUIET, "budget": "10m", "continued_pretraining": 1 / 3, **changes})


@pytest.fixture
def model(tiny_tokenizer, tmp_path: Path) -> Path:
    return write_run(tmp_path / "mlm", tiny_tokenizer, tokens=5000)


def test_what_cannot_be_continued_is_an_error(model):
    for changes, message in (({"budget": None}, "share of the budget; give one"), ({"weights": "random"}, "leave one")):
        with pytest.raises(ConfigError, match=message):
            check_continues(config(model, **changes), model)
    check_continues(config(model), model)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"architectures": ["ModernBertModel"]}))
    with pytest.raises(ConfigError, match="not a language model with its output layer"):
        check_continues(config(model), model)


def test_other_tasks_say_that_they_do_not_continue_pretraining(model, tmp_path):
    rows = write_rows(tmp_path / "train.csv", letters(40))
    settings = config(model, run="x", data={"path": str(rows)}, task="multi_label")
    with pytest.raises(ConfigError, match="is for task=single_label, not multi_label"):
        finetune(settings, tmp_path / "runs")


def test_by_default_a_run_does_not_continue_pretraining(model, tmp_path):
    settings = config(model, continued_pretraining=0)
    assert FinetuneConfig().continued_pretraining == 0
    assert run_it(settings, model, tmp_path / "run") == (settings, model)


def test_own_texts_are_those_of_training_and_unlabelled_ones_that_are_not_the_pretraining_corpus(model, tmp_path):
    given = splits(6)
    given.unlabelled = ["one", "two"]
    texts = [example.text for example in given.train]
    assert own_texts(config(model), given) == texts, "unlabelled by default: the pretraining corpus"
    more = tmp_path / "more.txt"
    assert own_texts(config(model, data={"path": "x.csv", "unlabelled": str(more)}), given) == [*texts, "one", "two"]
    (model.parent / "config.yaml").write_text(yaml.safe_dump({"corpus": {"sources": [{"path": str(more)}]}}))
    assert own_texts(config(model, data={"path": "x.csv", "unlabelled": str(more)}), given) == texts


def test_tokens_of_a_model_include_those_of_the_models_that_it_went_on_from(model, tmp_path, tiny_tokenizer):
    second = write_run(tmp_path / "second", tiny_tokenizer, tokens=7000, init=str(model.parent))
    assert pretrained_tokens(second) == 12_000 and not pretrained_briefly(second) and pretrained_briefly(model)
    (model.parent / "summary.json").unlink()
    assert pretrained_tokens(second) is None and not pretrained_briefly(second)


def run_it(settings: FinetuneConfig, model: Path, path: Path):
    with RunDirectory(path) as run:
        return continue_pretraining(settings, model, splits(), PartialState(), run, Console(quiet=True))


def test_the_rest_of_the_budget_is_for_fine_tuning_and_a_resumed_run_does_not_pretrain_again(
    model, tmp_path, monkeypatch
):
    calls, times = [], iter([100.0, 350.0])
    monkeypatch.setattr(module, "_pretrain", lambda config, source, folder, seconds: calls.append(seconds))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    path = tmp_path / "run"
    for _ in range(2):
        rest, source = run_it(config(model), model, path)
        assert (rest.budget_seconds, source) == (350.0, path / "pretraining" / "model")
    assert calls == [pytest.approx(200.0)]
    assert fine_tuned_from(config(model), model, path) == (rest, source)
    texts = [json.loads(line)["text"] for line in (path / "pretraining.jsonl").read_text().splitlines()]
    assert texts == [example.text for example in splits().train]


def test_an_earlier_launch_has_taken_a_part_of_the_time(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_pretrain", lambda *_: None)
    (tmp_path / "run" / "pretraining").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}")
    assert run_it(config(model), model, tmp_path / "run")[0].budget_seconds == pytest.approx(400.0, abs=1)


def test_a_run_that_began_without_it_goes_on_without_it(model, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-00000001" / "metadata.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text("{}")
    settings = config(model)
    assert run_it(settings, model, tmp_path / "run") == (settings, model)


@pytest.mark.slow
def test_a_classifier_starts_from_the_continued_model(tiny_tokenizer, tmp_path):
    model = write_run(tmp_path / "mlm", tiny_tokenizer, tokens=5000)
    data = {"path": str(write_rows(tmp_path / "train.csv", letters(400)))}
    settings = config(model, run="classifier", data=data, budget="16s", continued_pretraining=0.5, max_steps=20)
    finetune(settings, tmp_path / "runs")
    run = tmp_path / "runs" / "classifier"
    before = (model / "model.safetensors").read_bytes()
    assert (run / "pretraining" / "model" / "model.safetensors").read_bytes() != before
    assert json.loads((run / "finished.json").read_text())["scores"]
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    spent = json.loads((run / "pretraining.json").read_text())["seconds"]
    assert float(resolved["budget"].removesuffix("s")) == pytest.approx(max(16 - spent, 1.6), abs=0.1)
