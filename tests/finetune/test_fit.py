"""What the trainings share: micro-batches, evaluation, and an output layer that is not fitted when a run resumes."""

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState

import finetune.training as module
from finetune.config import FinetuneConfig
from finetune.fit import FEW_HELD_OUT, Fit, balanced_weights, without_choice_by_few
from finetune.run import finetune
from tests.finetune.tiny_classifier import QUIET, letters, write_pretrained, write_rows


@pytest.mark.parametrize(
    ("changes", "tokens", "expected"),
    [
        ({}, None, 1),  # 32 x 100 tokens fit into one forward pass
        ({}, 800, 4),
        ({}, 1, 32),  # at least one text in each
        ({"micro_batch_size": 5}, 800, 7),  # as asked for, whatever the tokens
        ({"batch_size": 8}, 400, 2),
    ],
)
def test_micro_batches_hold_as_many_tokens_as_wanted(changes, tokens, expected):
    config = FinetuneConfig(**{"runtime": {"device": "cpu", "precision": "fp32"}, **changes})
    fit = Fit(config, np.full(64, 100), PartialState(), tokens)
    assert fit.accumulation == expected and len(fit.batches.batch(0)) == expected
    assert sum(map(len, fit.batches.batch(0))) == config.batch_size


def test_evaluation_sees_every_row_once_and_leaves_the_model_in_training():
    config = FinetuneConfig(evaluation_batch_size=4, runtime={"device": "cpu", "precision": "fp32"})
    fit = Fit(config, np.full(64, 10), PartialState())
    values, modes = torch.randn(10, 3), []

    class Model(torch.nn.Module):
        def forward(self, rows):
            modes.append(self.training)
            return values[rows]

    model = Model()
    found = fit.predict(
        model,
        np.arange(10)[::-1].copy(),
        lambda rows: {"rows": torch.from_numpy(rows.copy()), "labels": torch.from_numpy(rows.copy())},
        lambda logits, labels, rows: (logits, labels.tolist() == rows.tolist()),
    )
    assert [len(rows) for rows, _ in found] == [4, 4, 2] and modes == [False] * 3 and model.training
    assert np.concatenate([rows for rows, _ in found]).tolist() == list(range(10))
    assert all(torch.equal(logits, values[rows.copy()]) and same for rows, (logits, same) in found)


def test_few_validation_texts_do_not_choose_the_weights():
    few, many = (without_choice_by_few(FinetuneConfig(), FEW_HELD_OUT - few) for few in (1, 0))
    assert (few.load_best, few.patience) == (False, None)
    assert many == FinetuneConfig()


def test_balanced_classes_have_equal_weight_in_all():
    labels = np.array([0, 0, 0, 1, 3])
    weights = balanced_weights(labels, 4)
    assert weights[[0, 1, 3]].tolist() == pytest.approx([5 / 12, 5 / 4, 5 / 4])


@pytest.mark.slow
@pytest.mark.parametrize("bag", [False, True])
def test_a_resumed_run_does_not_fit_the_output_layer_again_and_ends_with_equal_weights(
    tiny_tokenizer, tmp_path, monkeypatch, bag
):
    model = write_pretrained(tmp_path / "pretrained", tiny_tokenizer)
    if bag:
        (tmp_path / "summary.json").write_text('{"tokens": 1000, "parameters": 1000}')
    data = {"path": str(write_rows(tmp_path / "train.csv", letters(160)))}
    options = {"model": str(model), "data": data, "max_steps": 9, "save_every": 4, "teacher": "none", **QUIET}
    fits, original = [], module.fit_output_layer
    monkeypatch.setattr(module, "fit_output_layer", lambda *a: fits.append(1) or original(*a))
    finetune(FinetuneConfig(run="whole", **options), tmp_path / "runs")

    with monkeypatch.context() as patched:
        collate, calls = module.collate, []

        def dies(*arguments):
            calls.append(1)
            if len(calls) == 12:  # in step 6
                raise RuntimeError("killed")
            return collate(*arguments)

        patched.setattr(module, "collate", dies)
        with pytest.raises(RuntimeError, match="killed"):
            finetune(FinetuneConfig(run="killed", **options), tmp_path / "runs")
    assert len(fits) == 2 and list((tmp_path / "runs" / "killed" / "checkpoints").glob("step-*"))
    finetune(FinetuneConfig(run="killed", **options), tmp_path / "runs")
    assert len(fits) == 2
    whole, killed = ((tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    resolved = (yaml.safe_load((tmp_path / "runs" / name / "config.yaml").read_text()) for name in ("whole", "killed"))
    assert [tree["optim"]["embedding_lr"] for tree in resolved] == [1e-3 if bag else 3e-3] * 2
