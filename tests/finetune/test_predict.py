"""`python -m finetune predict`: rows in order for every kind of input, endless streams, errors that name the fix."""

import csv
import io
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import mini_llm
from finetune.__main__ import app
from finetune.predict import Classifier, predict
from finetune.predicting.output import RowWriter
from finetune.predicting.progress import BatchTimes, RowProgress
from finetune.predicting.rows import InputRow, iter_chunks, iter_input
from finetune.scores.calibration import Calibration, Threshold, write_calibration
from mini_llm.corpus.report import ReadReport
from mini_llm.engine.cli import run_app
from mini_llm.engine.errors import DataError
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


def check_rows(rows, texts, probabilities, column="text"):
    """A text of TEXTS that is empty has no label."""
    assert [row[column] for row in rows] == texts
    assert [row["row"] for row in rows] == list(range(1, len(texts) + 1))
    for row, wanted in zip(rows, probabilities, strict=True):
        if not row[column]:
            assert (row["label"], row["probability"], row["probabilities"]) == (None, None, {})
            continue
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


@pytest.mark.parametrize("kind", ["gpt", "mlm"])
def test_probabilities_are_equal_in_batches_of_1_7_and_64(runs, kind):
    classifier = Classifier(runs / kind)
    texts = [f"def f{i}(x): {'return x ' * (i % 9)}" for i in range(70)]
    alone = classifier.probabilities(texts, 1)
    for batch_size in (7, 64):
        assert np.abs(classifier.probabilities(texts, batch_size) - alone).max() < 1e-6
    assert alone.std(0).min() > 1e-3


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
    options = ["--text", "body", "--batch-size", "2", "--on-null", "empty"]
    code, output, log = main(monkeypatch, capsys, runs / "gpt", path, *options)
    assert code == 0, log
    check_rows(lines(output), texts, wanted, "body")
    numbers = [str(n) if suffix in (".csv", ".tsv") else n for n in range(len(texts))]
    assert [row["id"] for row in lines(output)] == numbers
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
    options = ["--input-format", input_format, "--on-null", "empty"]
    code, output, _ = main(monkeypatch, capsys, runs / "gpt", "-", *options, stdin=table.getvalue().encode())
    assert code == 0
    check_rows(lines(output), texts, expected["gpt"][: len(texts)])


def test_csv_output(runs, expected, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "new.txt", tmp_path / "deep" / "labels.csv"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    code, output, _ = main(monkeypatch, capsys, runs / "gpt", path, "--output", out)
    assert (code, output) == (0, "")
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "text", "label", "probability", *(f"p({name})" for name in NAMES.values())]
    assert [row["text"] for row in rows] == TEXTS and [row["row"] for row in rows] == list("123456")
    assert list(rows[1].values()) == ["2", "", "", "", "", "", ""]
    for row, wanted in zip(rows, expected["gpt"], strict=True):
        if not row["text"]:
            continue
        assert row["label"] == NAMES[int(wanted.argmax())]
        assert [float(row[f"p({name})"]) for name in NAMES.values()] == pytest.approx(wanted, abs=2e-5)


def written(output_format, names, rows, **options):
    """What RowWriter writes for (columns, probabilities) of each row."""
    file = io.StringIO()
    writer = RowWriter(file, output_format, names, **options)
    for number, (columns, probabilities) in enumerate(rows, 1):
        values = None if probabilities is None else np.array(probabilities, dtype=np.float32)
        writer.write(InputRow(number, columns.get("text"), columns), values)
    return file.getvalue()


def test_top_k():
    rows = [({"text": "t"}, [0.2, 0.5, 0.3])]
    for output_format, wanted in (
        ("jsonl", '{"row": 1, "text": "t", "label": "b", "probability": 0.5, "probabilities": {"b": 0.5, "c": 0.3}}\n'),
        ("csv", "row,text,label,probability,p(a),p(b),p(c)\n1,t,b,0.5,,0.5,0.3\n"),
    ):
        assert written(output_format, ["a", "b", "c"], rows, top_k=2) == wanted
    assert len(json.loads(written("jsonl", ["a", "b", "c"], rows, top_k=99))["probabilities"]) == 3


def test_added_columns_do_not_replace_those_of_the_input():
    rows = [({"label": "mine", "predicted_label": 1, "text": "t", "p(a)": None}, [0.75, 0.25])]
    found = json.loads(written("jsonl", ["a", "b"], rows))
    assert list(found)[:5] == ["row", "label", "predicted_label", "text", "p(a)"]
    assert (found["label"], found["predicted_label"], found["predicted_predicted_label"]) == ("mine", 1, "a")
    header, row = csv.reader(written("csv", ["a", "b"], rows).splitlines())
    assert header[:5] == ["row", "label", "predicted_label", "text", "p(a)"]
    assert header[5:] == ["predicted_predicted_label", "probability", "predicted_p(a)", "p(b)"]
    assert row == ["1", "mine", "1", "t", "", "a", "0.75", "0.75", "0.25"]


def test_values_of_any_type_are_carried_to_the_output():
    values = {"text": "t", "list": [1, "\u00e9"], "map": {"k": None}, "flag": True, "float": 0.5, "nan": float("nan")}
    found = json.loads(written("jsonl", ["a", "b"], [(values, [1, 0])]))
    assert {name: found[name] for name in values} == {**values, "nan": None}
    row = next(csv.DictReader(io.StringIO(written("csv", ["a", "b"], [(values, [1, 0])]))))
    assert (json.loads(row["list"]), row["map"], row["flag"], row["nan"]) == ([1, "\u00e9"], '{"k": null}', "true", "")


def test_keys_that_the_first_row_lacks():
    rows = [({"text": "t", "a": 1}, [1, 0]), ({"text": "u", "b": 2}, [1, 0])]
    assert [list(row)[1:3] for row in lines(written("jsonl", ["x", "y"], rows))] == [["text", "a"], ["text", "b"]]
    with pytest.raises(DataError, match=r"row 2: the key 'b' .* --format jsonl"):
        written("csv", ["x", "y"], rows)
    with pytest.raises(DataError, match="row 2: the key 'label' is also"):
        written("jsonl", ["x", "y"], [rows[0], ({"text": "u", "label": 2}, [1, 0])])


# Calibration and abstention


@pytest.fixture(scope="module")
def calibrated(runs, tmp_path_factory):
    """The classifier `gpt` with a temperature of 2 and a threshold for a precision of 0.9."""
    directory = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(runs / "gpt" / "model", directory)
    write_calibration(directory, Calibration(2.0, {0.9: Threshold(0.41, 0.5, 0.9)}))
    return directory


def test_probabilities_are_calibrated(runs, expected, calibrated, tmp_path, monkeypatch, capsys):
    texts = [text for text in TEXTS if text]
    path = tmp_path / "new.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    wanted = np.array([row for text, row in zip(TEXTS, expected["gpt"], strict=True) if text]) ** 0.5
    wanted /= wanted.sum(1, keepdims=True)
    code, output, _ = main(monkeypatch, capsys, calibrated, path)
    assert code == 0
    check_rows(lines(output), texts, wanted)
    classifier = mini_llm.load(calibrated)
    assert [row.probability for row in classifier.classify(texts)] == pytest.approx(wanted.max(1), abs=1e-6)


@pytest.mark.parametrize("options", [["--precision", "0.9"], ["--min-probability", "0.41"]])
def test_unsure_rows_have_no_label(calibrated, tmp_path, monkeypatch, capsys, options):
    path = tmp_path / "new.txt"
    path.write_text("".join(f"def f{i}(x): return {'x' * (i % 7)}\n" for i in range(40)))
    plain = lines(main(monkeypatch, capsys, calibrated, path)[1])
    code, output, log = main(monkeypatch, capsys, calibrated, path, *options)
    rows = lines(output)
    unsure = [row["probability"] < 0.41 for row in rows]
    assert code == 0 and 0 < sum(unsure) < len(rows)
    assert f"{sum(unsure)} of 40 rows have no label" in log
    for row, before, abstain in zip(rows, plain, unsure, strict=True):
        assert row["abstain"] is abstain and row["label"] == (None if abstain else before["label"])
        assert row["probabilities"] == before["probabilities"]


def test_a_shorter_recorded_length_is_respected(runs, tmp_path):
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


def test_full_chunks_are_the_same_however_fast_the_source_is():
    def source():
        for number in range(25):
            time.sleep(0.001 * (number % 3 == 0))
            yield number

    assert [len(chunk) for chunk in iter_chunks(source(), 10, full=True)] == [10, 10, 5]
    weighed = list(iter_chunks(iter([1, 2, 9, 1, 1, 30, 1]), 10, full=True, weigh=lambda item: item, limit=10))
    assert weighed == [[1, 2], [9, 1], [1], [30], [1]]


def test_long_rows_are_not_read_ahead():
    taken = []

    def source():
        for number in range(100):
            taken.append(number)
            yield number

    chunks = iter_chunks(source(), 1000, weigh=lambda item: 6, limit=10)
    assert next(chunks) == [0]
    time.sleep(0.1)
    assert len(taken) <= 5
    assert [number for chunk in chunks for number in chunk] == list(range(1, 100))


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
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "fine"}\n')
    bad_json = b'{"text": "fine"}\n{"text": \n'
    for arguments, stdin, code, *parts in (
        ([runs / "lm", good], None, 4, "not a classifier", "Qwen3ForCausalLM", "python -m finetune model="),
        ([tmp_path, good], None, 4, "no config.json", "python -m finetune"),
        ([runs / "nowhere", good], None, 4, "no such directory"),
        ([runs / "gpt", good], None, 3, "no column 'text'", "'body'"),
        ([runs / "gpt", rows], None, 3, "no text in the column 'text'", "'body'", "--text COLUMN"),
        ([runs / "gpt", tmp_path / "new.csw"], None, 3, "no such file", "new.csv"),
        ([runs / "gpt", tmp_path], None, 3, "a folder or several files; name one file"),
        ([runs / "gpt", tmp_path / "*.csv"], None, 3, "a folder or several files; name one file"),
        ([runs / "gpt", good, "--output", good, "--text", "body"], None, 2, "is the input file"),
        ([runs / "gpt", tmp_path / "none.csv", "--output", good], None, 3, "no such file"),
        ([runs / "gpt", good, "--input-format", "csv"], None, 2, "streams only"),
        ([runs / "gpt", good, "--encoding", "latin-x"], None, 2, "unknown encoding 'latin-x'"),
        ([runs / "gpt", good, "--on-null", "fill"], None, 2, "stop, empty, skip"),
        ([runs / "gpt", good, "--text", "body", "--precision", "0.9"], None, 2, "no threshold", "--min-probability"),
        (
            [runs / "gpt", good, "--text", "body", "--precision", "0.9", "--min-probability", "0.5"],
            None,
            2,
            "give one of them",
        ),
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


def feed(monkeypatch, data):
    """Put `data` on standard input."""
    reading, writing = os.pipe()
    threading.Thread(target=lambda: (os.write(writing, data), os.close(writing)), daemon=True).start()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))


TABLES = {
    "semicolons": ("csv", "text;n\na, b;1\n"),
    "bom": ("csv", "\ufefftext,n\na,1\n"),
    "short row": ("csv", "text,n\na,1\nb\n"),
    "long row": ("csv", "text,n\na,1,2\n"),
    "long field": ("csv", f"text,n\n{'a' * 200_000},1\n"),
    "open quote": ("csv", 'text,n\n"a,1\n'),
    "twice": ("csv", "text,n,n\na,1,2\n"),
    "tabs": ("tsv", 'text\tn\n"a\t1\n'),
    "no text": ("csv", "text,n\na,1\n,2\n"),
    "null": ("jsonl", '{"text": "a"}\n\n{"text": null}\n'),
    "no key": ("jsonl", '{"n": 1}\n{"text": "a"}\n'),
    "no object": ("jsonl", '{"text": "a"}\n[1]\n'),
    "list": ("jsonl", '{"text": ["a"]}\n'),
    "other column": ("csv", "body\na\n"),
    "other key": ("jsonl", '{"body": "a"}\n{"body": "b"}\n'),
    "lines": ("lines", "a\r\n\r\nb\rc"),
}


def read(*arguments, **options):
    """The rows, or the error without the name of the input."""
    try:
        return list(iter_input(*arguments, **options))
    except DataError as error:
        return str(error).partition(": ")[2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("on_null", [None, "empty", "skip"])
@pytest.mark.parametrize("case", TABLES)
def test_a_file_and_standard_input_are_read_the_same(tmp_path, monkeypatch, case, on_null, encoding):
    input_format, content = TABLES[case]
    data = content.encode(encoding)
    path = tmp_path / ("a.txt" if input_format == "lines" else f"a.{input_format}")
    path.write_bytes(data)
    feed(monkeypatch, data)
    from_stream = read("-", "text", input_format, on_null=on_null)
    assert from_stream == read(str(path), "text", on_null=on_null)


def test_rows_that_cannot_be_read_are_errors(tmp_path):
    for case, place, problem in (
        ("short row", "row 2", "has 1 fields"),
        ("long row", "row 1", "has 3 fields"),
        ("open quote", "row 1", "check its quotes"),
        ("twice", "column 'n'", "more than once"),
        ("no object", "line 2", "expected an object"),
        ("list", "row 1", "a list, not text"),
        ("other column", "'body'", "--text COLUMN"),
    ):
        input_format, content = TABLES[case]
        (tmp_path / f"a.{input_format}").write_text(content)
        found = read(str(tmp_path / f"a.{input_format}"), "text")
        assert isinstance(found, str) and place in found and problem in found, (case, found)
    (tmp_path / "a.csv").write_text(TABLES["long field"][1])
    assert [len(row.text) for row in read(str(tmp_path / "a.csv"), "text")] == [200_000]


def test_bytes_that_arrive_one_by_one_are_decoded(monkeypatch):
    reading, writing = os.pipe()

    def write():
        for byte in "text,n\n\u20ac,1\n".encode("utf-16"):
            os.write(writing, bytes([byte]))
            time.sleep(0.001)
        os.close(writing)

    threading.Thread(target=write, daemon=True).start()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    assert read("-", "text", "csv") == [InputRow(1, "\u20ac", {"text": "\u20ac", "n": "1"})]


@pytest.mark.parametrize(
    ("input_format", "start"), [("lines", ""), ("csv", "text\n"), ("tsv", "text\n"), ("jsonl", "")]
)
def test_a_row_is_there_as_soon_as_its_line_is(monkeypatch, input_format, start):
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    found: queue.Queue[str | None] = queue.Queue()

    def read_texts():
        for row in iter_input("-", "text", input_format):
            found.put(row.text)

    os.write(writing, start.encode())
    thread = threading.Thread(target=read_texts, daemon=True)
    thread.start()
    for text in ("one", "two"):
        os.write(writing, (f'{{"text": "{text}"}}\n' if input_format == "jsonl" else f"{text}\n").encode())
        assert found.get(timeout=5) == text
    os.close(writing)
    thread.join(timeout=5)


def test_a_separator_is_told_from_the_header(monkeypatch):
    feed(monkeypatch, TABLES["semicolons"][1].encode())
    assert read("-", "text", "csv") == [InputRow(1, "a, b", {"text": "a, b", "n": "1"})]


def test_rows_without_a_text(tmp_path):
    table, objects, text = tmp_path / "a.csv", tmp_path / "a.jsonl", tmp_path / "a.txt"
    table.write_text("text,n\na,1\n,2\nb,3\n")
    objects.write_text('{"n": 1}\n{"text": "a"}\n{"text": " "}\n{"text": null}\n')
    text.write_text("a\n\nb\n")
    for path, place in ((table, "row 2"), (objects, "row 1")):
        assert place in read(str(path), "text") and "--on-null" in read(str(path), "text")
    assert "line 2 is blank" in read(str(text), "text", on_null="stop")
    for path, texts in ((table, ["a", None, "b"]), (objects, [None, "a", None, None]), (text, ["a", None, "b"])):
        assert [row.text for row in read(str(path), "text", on_null="empty")] == texts
        kept = [(row.number, row.text) for row in read(str(path), "text", on_null="skip")]
        assert kept == [(number, one) for number, one in enumerate(texts, 1) if one]
    assert [row.text for row in read(str(text), "text")] == ["a", None, "b"]


def test_a_column_that_no_row_has_is_an_error_even_if_rows_without_text_are_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n' * 3)
    for on_null in ("skip", "empty", None):
        assert "'body'" in read(str(tmp_path / "a.jsonl"), "text", on_null=on_null)


def test_a_named_pipe_is_read_like_standard_input(runs, tmp_path, monkeypatch, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_text("text,n\na,1\nb,2\n"), daemon=True).start()
    code, output, _ = main(monkeypatch, capsys, runs / "gpt", pipe, "--input-format", "csv")
    assert code == 0 and [(row["text"], row["n"]) for row in lines(output)] == [("a", "1"), ("b", "2")]


def test_invalid_utf8_is_replaced_and_counted(runs, tmp_path, monkeypatch, capsys):
    data = b"caf\xe9\nok\n"
    feed(monkeypatch, data)
    report = ReadReport()
    assert [row.text for row in iter_input("-", "text", report=report)] == ["caf\ufffd", "ok"]
    assert report.replaced_bytes == 1
    (tmp_path / "new.txt").write_bytes(data)
    for arguments, stdin in (([tmp_path / "new.txt"], None), (["-"], data)):
        _, output, log = main(monkeypatch, capsys, runs / "gpt", *arguments, stdin=stdin)
        assert lines(output)[0]["text"] == "caf\ufffd" and "1 bytes that are not valid" in log
        assert "--encoding" in log
        _, output, log = main(monkeypatch, capsys, runs / "gpt", *arguments, "--encoding", "latin-1", stdin=stdin)
        assert lines(output)[0]["text"] == "caf\u00e9" and "not valid" not in log


def test_the_summary_says_how_fast_it_was(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "new.txt").write_text("a\n" * 70)
    _, _, log = main(monkeypatch, capsys, runs / "gpt", tmp_path / "new.txt", "--batch-size", "4")
    assert re.search(
        r"70 texts in \d+\.\d s, [\d,]+ texts/s; batches of up to 4: P50 \d.* ms, P95 .* ms, P99 .* ms", log
    )


def test_percentiles_of_batch_times():
    assert str(BatchTimes(0.001 * n for n in range(1, 102))) == "P50 51.0 ms, P95 96.0 ms, P99 100.0 ms"
    assert len(BatchTimes([0.1] * 200_000).seconds) == 100_000


def test_progress_is_printed_every_few_seconds():
    stream = io.StringIO()
    with RowProgress(1000, interval=0, stream=stream) as progress:
        progress.update(5, 100)
        progress.update(10, 200)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("5 texts, ") and "10%" in first
    assert "20%" in second and "left" in second


def test_predict_counts_rows(runs, tmp_path):
    path = tmp_path / "new.txt"
    path.write_text("a\n" * 70)
    assert predict(runs / "gpt", str(path), output=tmp_path / "out.jsonl", batch_size=2) == 70
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 70
