"""tracking.samples: the labels that a model gives the first validation texts, at each evaluation."""

import json

import pytest

from finetune.config import FinetuneConfig
from finetune.run import finetune
from tests.finetune.tiny_classifier import QUIET, letters, write_pretrained, write_rows


@pytest.mark.slow
@pytest.mark.parametrize("task", ["single_label", "regression"])
def test_predictions_are_a_table_over_the_evaluations(task, tiny_tokenizer, tmp_path):
    rows = letters(40)
    if task == "regression":
        rows = [(text, str(float(label == "upper"))) for text, label in rows]
    data = {"path": str(write_rows(tmp_path / "train.csv", rows))}
    data["validation"] = str(write_rows(tmp_path / "validation.csv", rows[:6]))
    settings = {**QUIET, "tracking": {"wandb": "disabled", "samples": 3}}
    model = write_pretrained(tmp_path / "pretrained", tiny_tokenizer)
    config = FinetuneConfig(
        model=str(model), run="run", task=task, data=data, teacher="none", max_steps=4, evaluate_every=2, **settings
    )
    finetune(config, tmp_path / "runs")
    table = json.loads((tmp_path / "runs" / "run" / "tables" / "validation_samples.json").read_text())
    assert table["columns"][:3] == ["step", "text", "label"] and len(table["columns"]) >= 4
    assert [row[:2] for row in table["rows"]] == [[step, text] for step in (2, 4) for text, _ in rows[:3]]
    assert [row[2] for row in table["rows"]] == 2 * [label for _, label in rows[:3]]
