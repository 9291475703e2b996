"""Classifiers of other projects: the labels of `predict` are those of transformers."""

import json

import pytest
import torch

from finetune.predict import Classifier, predict
from tests.other_models import save_model
from tests.tokenizer_kinds import fuzz

KINDS = ["bert", "bert, cased", "bert, flags", "modernbert", "modernbert, added tokens", "roberta", "gpt2", "llama"]
KINDS += ["llama2", "qwen3", "t5"]
TEXTS = [text for text in fuzz(20) if text.strip() and len(text) < 100]


@pytest.mark.parametrize(("kind", "side"), [*((kind, "right") for kind in KINDS), ("bert", "left"), ("llama", "left")])
def test_labels_are_those_of_transformers(kind, side, tmp_path):
    model, auto = save_model(kind, tmp_path, "SequenceClassification")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": side}))
    names = [name for name in auto.model_input_names if name != "token_type_ids"]
    with torch.no_grad():
        encoded = [auto(text, return_tensors="pt") for text in TEXTS]
        rows = [model(**{name: row[name] for name in names}).logits[0].softmax(-1) for row in encoded]
    expected = torch.stack(rows)
    assert expected.std(0).max() > 0.01, "the texts differ"
    found = torch.from_numpy(Classifier(tmp_path).probabilities(TEXTS, batch_size=8))
    assert torch.allclose(found, expected, atol=1e-5)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    predict(tmp_path, str(tmp_path / "texts.jsonl"), output=tmp_path / "out.jsonl")
    labels = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert labels == [model.config.id2label[i] for i in expected.argmax(-1).tolist()]


def test_a_pad_token_beyond_the_embedding_is_not_used(tmp_path):
    """transformers fails on a batch for such a model, but answers a text alone."""
    model, auto = save_model("gpt2, pad token of the configuration alone", tmp_path, "SequenceClassification", rows=320)
    texts = ["a film", "what a warm and clever little film", "dull"]
    with torch.no_grad():
        expected = torch.cat([model(**auto(text, return_tensors="pt")).logits.softmax(-1) for text in texts])
    found = torch.from_numpy(Classifier(tmp_path).probabilities(texts))
    assert torch.allclose(found, expected, atol=1e-5)
