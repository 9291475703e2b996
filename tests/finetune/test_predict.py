"""`python -m finetune predict`: rows in order for every kind of input, endless streams, errors that name the fix."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from finetune.__main__ import app
from finetune.predict import Classifier, predict, row_writer
from finetune.predict_input import iter_chunks, iter_texts
from mini_llm.engine.cli import run_app
from mini_llm.model import CausalLM, ModelConfig, SequenceClassifier, save_model
from mini_llm.tokenization.save import save_tokenizer

CONTEXT = 20
NAMES = {0: "caf\u00e9", 1: "no, thanks", 2: "yes"}
TEXTS = [
    "def one(x):",
    "",
    "class Two: pass " * 20,
    "<s> caf\u00e9 \u2192 </s> <mask>",
    '"quoted", text',
    "def one(x): return x",
]


@pytest.fixture(scope="module")
def runs(tiny_tokenizer, tmp_path_factory):
    """gpt and mlm: classifiers in run directories; lm: a causal language model."""
    root = tmp_path_factory.mktemp("runs")
    sizes = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    encoder = {"causal": False, "norm": "layernorm", "embedding_norm": True, "first_attention_norm": False}
    encoder |= {"qk_norm": False, "classifier_pooling": "mean"}
    for name, cls, changes in (
        ("gpt", SequenceClassifier, {"causal": True, "id2label": NAMES}),
        ("mlm", SequenceClassifier, {**encoder, "id2label": NAMES}),
        ("lm", CausalLM, {"causal": True}),
    ):
        torch.manual_seed(0)
        model = cls(ModelConfig(**sizes, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        save_model(model, root / name / "model")
        save_tokenizer(tiny_tokenizer, root / name / "model", "masked" if name == "mlm" else "causal")
    return root


@pytest.fixture(scope="module")
def expected(runs):
    """Probabilities of TEXTS, one by one, from ids framed by hand."""
    found = {}
    for name, frame in (("gpt", ([1], [])), ("mlm", ([5], [6]))):
        classifier = Classifier(runs / name)
        rows = []
        for text in TEXTS:
            ids = classifier.tokenizer.encode(text)[: CONTEXT - len(frame[0]) - len(frame[1])]
            with torch.no_grad():
                rows.append(classifier.model(torch.tensor([[*frame[0], *ids, *frame[1]]]))[0].softmax(-1).numpy())
        found[name] = np.stack(rows)
    assert found["gpt"].std(0).min() > 0.01
    return found


def main(monkeypatch, capsys, *arguments, stdin=None):
    """Exit code, standard output and standard error of the command."""
    if stdin is not None:
        reading, writing = os.pipe()
        os.write(writing, stdin)
        os.close(writing)
        monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    code = 0
    try:
        run_app(app, "finetune", ["predict", *map(str, arguments)])
    except SystemExit as error:
        code = error.code or 0
    sys.stdout.flush()
    return code, sys.stdout.buffer.getvalue().decode(), capsys.readouterr().err


def check_rows(rows, texts, probabilities):
    assert [row["text"] for row in rows] == texts
    for row, wanted in zip(rows, probabilities, strict=True):
        assert list(row["probabilities"].values()) == sorted(row["probabilities"].values(), reverse=True)
        assert row["label"] == next(iter(row["probabilities"])) == NAMES[int(wanted.argmax())]
        assert row["probability"] == row["probabilities"][row["label"]]
        for index, name in NAMES.items():
            assert row["probabilities"][name] == pytest.approx(wanted[index], abs=2e-5)


def lines(output):
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("kind", ["gpt", "mlm"])
def test_texts_are_labelled_in_order_whatever_the_batch(runs, expected, kind):
    classifier = Classifier(runs / kind)
    for batch_size in (1, 2, 64):
        found = classifier.probabilities(TEXTS, batch_size)
        assert np.abs(found - expected[kind]).max() < 1e-5
    assert np.abs(found.sum(1) - 1).max() < 1e-5


def test_special_tokens_in_a_text_are_plain_text(runs):
    classifier = Classifier(runs / "gpt")
    ids = classifier.tokenizer.encode("<s></s><mask><cls>")
    assert not classifier.tokenizer.special_ids & set(ids)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
def test_every_kind_of_table(runs, expected, tmp_path, monkeypatch, capsys, suffix):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / f"new{suffix}"
    texts = TEXTS if suffix != ".tsv" else [text for text in TEXTS if '"' not in text]
    wanted = [row for text, row in zip(TEXTS, expected["gpt"], strict=True) if text in texts]
    frame = pandas.DataFrame({"id": range(len(texts)), "body": texts})
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif "json" in suffix:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="," if suffix == ".csv" else "\t", index=False)
    code, output, log = main(monkeypatch, capsys, runs / "gpt", path, "--text", "body", "--batch-size", "2")
    assert code == 0
    check_rows(lines(output), texts, wanted)
    assert f"1 of {len(texts)} texts are longer than {CONTEXT} tokens" in log


def test_lines_of_a_text_file_include_blank_ones(runs, expected, tmp_path, monkeypatch, capsys):
    path = tmp_path / "new.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode())
    code, output, _ = main(monkeypatch, capsys, runs / "mlm" / "model", path)
    assert code == 0
    check_rows(lines(output), TEXTS, expected["mlm"])


@pytest.mark.parametrize("input_format", ["lines", "jsonl", "csv", "tsv"])
def test_standard_input(runs, expected, monkeypatch, capsys, input_format):
    texts = TEXTS if input_format != "tsv" else TEXTS[:4]
    table = io.StringIO()
    if input_format == "lines":
        table.write("".join(text + "\n" for text in texts))
    elif input_format == "jsonl":
        table.write("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
    else:
        writer = csv.writer(table, delimiter="," if input_format == "csv" else "\t")
        writer.writerows([["n", "text"], *([1, text] for text in texts)])
    code, output, _ = main(
        monkeypatch, capsys, runs / "gpt", "-", "--input-format", input_format, stdin=table.getvalue().encode()
    )
    assert code == 0
    check_rows(lines(output), texts, expected["gpt"][: len(texts)])


def test_csv_output(runs, expected, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "new.txt", tmp_path / "deep" / "labels.csv"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    code, output, _ = main(monkeypatch, capsys, runs / "gpt", path, "--output", out)
    assert (code, output) == (0, "")
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["text", "label", "probability", *(f"p({name})" for name in NAMES.values())]
    assert [row["text"] for row in rows] == TEXTS
    for row, wanted in zip(rows, expected["gpt"], strict=True):
        assert row["label"] == NAMES[int(wanted.argmax())]
        assert [float(row[f"p({name})"]) for name in NAMES.values()] == pytest.approx(wanted, abs=2e-5)


def test_top_k(runs):
    probabilities = np.array([0.2, 0.5, 0.3], dtype=np.float32)
    for output_format, wanted in (
        ("jsonl", '{"text": "t", "label": "b", "probability": 0.5, "probabilities": {"b": 0.5, "c": 0.3}}\n'),
        ("csv", "text,label,probability,p(a),p(b),p(c)\nt,b,0.5,,0.5,0.3\n"),
    ):
        file = io.StringIO()
        row_writer(file, output_format, ["a", "b", "c"], top_k=2)("t", probabilities)
        assert file.getvalue() == wanted
    file = io.StringIO()
    row_writer(file, "jsonl", ["a", "b", "c"], top_k=99)("t", probabilities)
    assert len(json.loads(file.getvalue())["probabilities"]) == 3


def test_a_shorter_recorded_length_is_respected(runs, tmp_path):
    import shutil

    shutil.copytree(runs / "gpt" / "model", tmp_path / "short")
    config = json.loads((tmp_path / "short" / "tokenizer_config.json").read_text())
    (tmp_path / "short" / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 8}))
    classifier = Classifier(tmp_path / "short")
    ids = classifier.tokenizer.encode("class Two: pass " * 20)
    cut = classifier.tokenizer.decode(ids[:7])
    assert np.allclose(*classifier.probabilities(["class Two: pass " * 20, cut]), atol=1e-6)
    assert classifier.max_length == 8 and classifier.truncated == 1


# Streams


@pytest.mark.slow
def test_an_endless_pipe_is_labelled_line_by_line(runs):
    """Each line is answered before the next one is sent; an interrupt ends the command without a hanging thread."""
    command = [sys.executable, "-m", "finetune", "predict", str(runs / "gpt"), "-", "--top-k", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as child:
        for text in (b"one", b"two", b"three"):
            child.stdin.write(text + b"\n")
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["text"] == text.decode()
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 130
        assert not {b"Traceback", b"Fatal"} & set(child.stderr.read().split())


def test_chunks_take_only_the_lines_that_are_available():
    taken = []

    def source():
        for number in range(1000):
            taken.append(number)
            yield number

    chunks = iter_chunks(source(), 10)
    first = next(chunks)
    time.sleep(0.1)
    assert len(taken) <= len(first) + 10 + 1  # what is read ahead is bounded
    rest = list(chunks)
    assert [number for chunk in [first, *rest] for number in chunk] == list(range(1000))
    assert max(map(len, rest)) <= 10


def test_rows_before_an_error_are_yielded():
    def source():
        yield from (1, 2, 3)
        raise ValueError("row 4")

    seen = []
    with pytest.raises(ValueError, match="row 4"):
        for chunk in iter_chunks(source(), 2):
            seen += chunk
    assert seen == [1, 2, 3]
    assert list(iter_chunks(iter([]), 2)) == []


# Errors


def test_errors_name_the_fix(runs, tmp_path, monkeypatch, capsys):
    good = tmp_path / "new.csv"
    good.write_text("body\nx\n")
    bad_json = b'{"text": "fine"}\n{"text": \n'
    for arguments, stdin, code, *parts in (
        ([runs / "lm", good], None, 4, "not a classifier", "Qwen3ForCausalLM", "python -m finetune model="),
        ([tmp_path, good], None, 4, "no config.json", "python -m finetune"),
        ([runs / "nowhere", good], None, 4, "no such directory"),
        ([runs / "gpt", good], None, 3, "no column 'text'", "'body'"),
        ([runs / "gpt", tmp_path / "new.csw"], None, 3, "no such file", "new.csv"),
        ([runs / "gpt", tmp_path], None, 3, "a folder; name one file"),
        ([runs / "gpt", good, "--output", good, "--text", "body"], None, 2, "is the input file"),
        ([runs / "gpt", good, "--input-format", "csv"], None, 2, "standard input"),
        ([runs / "gpt", good, "--format", "xml"], None, 2, "jsonl, csv"),
        ([runs / "gpt", "-", "--input-format", "jsonl"], bad_json, 3, "line 2", "not valid JSON"),
        (
            [runs / "gpt", "-", "--input-format", "csv"],
            b"a,b\n1,2\n",
            3,
            "no column 'text'",
            "'a', 'b'",
            "--text COLUMN",
        ),
    ):
        found, _, log = main(monkeypatch, capsys, *arguments, stdin=stdin)
        assert found == code, (arguments, log)
        for part in parts:
            assert part in log, (part, log)
        assert "Traceback" not in log
    assert good.read_text() == "body\nx\n"


def test_rows_before_a_bad_one_are_written(runs, monkeypatch, capsys):
    code, output, _ = main(
        monkeypatch, capsys, runs / "gpt", "-", "--input-format", "jsonl", stdin=b'{"text": "fine"}\n[1]\n'
    )
    assert code == 3 and [row["text"] for row in lines(output)] == ["fine"]


def test_invalid_utf8_on_standard_input_is_replaced(monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, b"caf\xe9\nok\n")
    os.close(writing)
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    assert list(iter_texts("-", "text")) == ["caf\ufffd", "ok"]


def test_predict_counts_rows(runs, tmp_path):
    path = tmp_path / "new.txt"
    path.write_text("a\n" * 70)
    assert predict(runs / "gpt", str(path), output=tmp_path / "out.jsonl", batch_size=2) == 70
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 70
