"""`python -m finetune score`: the scores of a saved classifier on labelled rows, with intervals and named errors."""

import json

import numpy as np
import pytest
import sklearn.metrics

from finetune.__main__ import app
from finetune.predict import Classifier
from finetune.predicting.score import score
from finetune.scores.calibration import Calibration, write_calibration
from mini_llm.engine.cli import run_app
from mini_llm.engine.errors import DataError
from mini_llm.model import ModelConfig, SequenceClassifier, save_model
from mini_llm.tokenization.save import save_tokenizer
from tests.models import randomized

NAMES = ["no", "yes", "[dim]maybe"]
TEXTS = [f"def f{i}(x): {'return x ' * (i % 5)}" for i in range(60)]
LABELS = [NAMES[i * i % 7 % 3] for i in range(60)]


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier") / "model"
    sizes = {"vocab_size": 384, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = ModelConfig(**sizes, **tokens, causal=True, id2label=dict(enumerate(NAMES)))
    save_model(randomized(SequenceClassifier(config)), directory)
    save_tokenizer(tiny_tokenizer, directory, "causal")
    write_calibration(directory, Calibration(3.0))
    return directory


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [{"body": text, "class": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def main(capsys, *arguments):
    code = 0
    try:
        run_app(app, "finetune", ["score", *map(str, arguments)])
    except SystemExit as error:
        code = error.code or 0
    found = capsys.readouterr()
    return code, found.out, found.err


def test_scores_are_those_of_scikit_learn(model, labelled):
    found = score(model, str(labelled), "body", "class")
    probabilities = Classifier(model).calibrated(TEXTS)
    labels = np.array([NAMES.index(label) for label in LABELS])
    predictions = probabilities.argmax(1)
    scores = found["scores"]
    wanted = {
        "accuracy": sklearn.metrics.accuracy_score(labels, predictions),
        "macro_f1": sklearn.metrics.f1_score(labels, predictions, average="macro"),
        "mcc": sklearn.metrics.matthews_corrcoef(labels, predictions),
        "log_loss": sklearn.metrics.log_loss(labels, probabilities),
    }
    assert {name: scores[name] for name in wanted} == pytest.approx(wanted)
    for name in (*wanted, "ece"):
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    assert scores["examples"] == 60 and found["labels"] == NAMES
    assert found["confusion"] == sklearn.metrics.confusion_matrix(labels, predictions).tolist()
    assert [row["support"] for row in found["per_class"]] == np.bincount(labels).tolist()
    assert all(row["f1_low"] <= row["f1"] <= row["f1_high"] for row in found["per_class"])


def test_the_command_prints_tables_or_json(model, labelled, capsys):
    code, output, log = main(capsys, model, labelled, "--text", "body", "--label", "class", "--json")
    assert code == 0
    found = json.loads(output)
    assert found["scores"]["accuracy"] == score(model, str(labelled), "body", "class")["scores"]["accuracy"]
    assert "longer than 16 tokens" in log
    code, output, log = main(capsys, model, labelled, "--text", "body", "--label", "class")
    assert code == 0 and f"{found['scores']['accuracy']:.4f}" in output
    assert all(name in output for name in (*NAMES, "macro F1", "MCC", "log loss", "ECE", "95 %"))
    assert "longer than 16 tokens" in log


def test_of_a_folder_the_test_files_are_scored_else_those_of_validation(model, tmp_path):
    for name, count in {"train": 9, "dev": 5, "test": 3}.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"{name} {i},yes\n" for i in range(count)))
    found = score(model, str(tmp_path))
    assert found["scores"]["examples"] == 3 and "scored are the test files by name: test.csv" in found["notes"][0]
    assert "not read: dev.csv, train.csv" in found["notes"][0]
    (tmp_path / "test.csv").unlink()
    assert score(model, str(tmp_path))["scores"]["examples"] == 5
    (tmp_path / "dev.csv").unlink()
    assert score(model, str(tmp_path))["scores"]["examples"] == 9


def test_unseen_labels_name_their_rows(model, tmp_path):
    path = tmp_path / "test.csv"
    path.write_text("text,label\na,yes\nb,Yes\nc,no\nd,never\ne,never\n")
    with pytest.raises(DataError, match=r"'never' in rows 4, 5.*'Yes' in row 2") as error:
        score(model, str(path))
    assert "yes" in str(error.value) and str(model) in str(error.value)


def test_errors_name_the_fix(model, tmp_path, capsys):
    path = tmp_path / "test.csv"
    path.write_text("text,label\na,yes\n,no\nc,\n")
    for arguments, code, *parts in (
        ([model, path], 3, "'text' is empty in 1 of 3 rows: row 2", "--on-null skip"),
        ([model, path, "--text", "body"], 3, "no column 'body'", "--text COLUMN"),
        ([model, path, "--on-null", "empty"], 2, "stop, skip"),
        ([model, path, "--encoding", "latin-x"], 2, "unknown encoding 'latin-x'"),
        ([model, tmp_path / "none.csv"], 3, "no such file"),
        ([tmp_path, path, "--on-null", "skip"], 4, "no config.json"),
    ):
        found, output, log = main(capsys, *arguments)
        assert found == code, log
        assert all(part in log for part in parts), log
        assert "Traceback" not in log and not output
    code, output, log = main(capsys, model, path, "--on-null", "skip", "--json")
    assert code == 0 and json.loads(output)["scores"]["examples"] == 1
    assert "1 rows without 'text' skipped" in log
