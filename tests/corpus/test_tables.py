"""Rows of tables: every format gives the same rows, and unreadable files are errors with place and cause."""

import bz2
import gzip
import json
import lzma

import pandas
import pytest

from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.documents import iter_documents
from mini_llm.corpus.fingerprint import corpus_fingerprint
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import iter_rows
from mini_llm.engine.errors import DataError

TEXTS = ["NA", "null", "", 'He said "no";\nthen, \u00e9\u2028\U0001f600\tleft.', "None", " spaces  ", "nan"]
LABELS = ["1", "0", "07", "1.0", "true", "x", ""]


def rows(path, columns=("text", "label"), **options):
    return list(iter_rows(str(path), None, list(columns), **options))


def jsonl():
    return "".join(json.dumps({"id": i, "text": t, "label": la}) + "\n" for i, (t, la) in enumerate(table()))


def table():
    return list(zip(TEXTS, LABELS, strict=True))


def csv_text(delimiter=","):
    frame = pandas.DataFrame({"id": range(len(TEXTS)), "text": TEXTS, "label": LABELS})
    return frame.to_csv(index=False, sep=delimiter)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", lambda: csv_text().encode()),
        ("semicolon.csv", lambda: csv_text(";").encode()),
        ("bom-crlf.csv", lambda: b"\xef\xbb\xbf" + csv_text().encode().replace(b"\n", b"\r\n")),
        ("excel.csv", lambda: ("\ufeff" + csv_text("\t")).encode("utf-16-le")),
        ("a.csv.gz", lambda: gzip.compress(csv_text().encode())),
        ("a.jsonl", lambda: jsonl().encode()),
        ("a.ndjson.xz", lambda: lzma.compress(jsonl().encode())),
        ("a.jsonl.bz2", lambda: bz2.compress(jsonl().encode())),
        ("a.jsonl.gz", lambda: gzip.compress(jsonl().encode())),
        ("members.jsonl.gz", lambda: gzip.compress(jsonl().encode()[:50]) + gzip.compress(jsonl().encode()[50:])),
        ("lines.json", lambda: jsonl().encode()),
        ("array.json", lambda: b" [" + b",".join(jsonl().encode().split(b"\n")[:-1]) + b"]\n"),
        ("pretty.json", lambda: json.dumps([json.loads(line) for line in jsonl().split("\n")[:-1]], indent=2).encode()),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 20, 5])
def test_every_format_gives_the_same_rows(tmp_path, monkeypatch, name, data, chunk):
    monkeypatch.setattr("mini_llm.corpus.text.CHUNK", chunk)
    (tmp_path / name).write_bytes(data())
    crlf = "crlf" in name  # kept as it is, also inside quotes
    expected = [{"text": t.replace("\n", "\r\n") if crlf else t, "label": label} for t, label in table()]
    assert rows(tmp_path / name) == expected


def test_zstandard_with_several_frames(tmp_path):
    import zstandard

    data = jsonl().encode()
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.compress(part) for part in (data[:40], data[40:])))
    assert [row["text"] for row in rows(tmp_path / "a.jsonl.zst")] == TEXTS


def test_parquet_keeps_types_and_nulls(tmp_path):
    frame = pandas.DataFrame(
        {"text": ["a", None], "label": [1, 2], "day": pandas.to_datetime(["2020-01-01", "2020-01-02"])}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [{"text": "a", "label": 1}, {"text": None, "label": 2}]
    assert rows(tmp_path / "a.parquet", ["day"])[0] == {"day": "2020-01-01 00:00:00"}
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"bad\.parquet"):
        rows(tmp_path / "bad.parquet")


def test_tsv_reads_quotes_literally(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"quoted" start\t1\n5" disk "\t0\nNA\t1\n')
    assert [row["text"] for row in rows(tmp_path / "a.tsv")] == ['"quoted" start', '5" disk "', "NA"]


def test_a_folder_of_tables_and_all_columns(tmp_path):
    (tmp_path / "1.csv").write_text("text,label\na,0\n")
    (tmp_path / "2.jsonl").write_text('{"text": "b", "label": 1, "more": 2.5}\n\n{"text": "c"}\n')
    assert rows(tmp_path) == [{"text": "a", "label": "0"}, {"text": "b", "label": 1}, {"text": "c", "label": None}]
    assert rows(tmp_path / "*.jsonl", [])[0] == {"text": "b", "label": 1, "more": 2.5}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"body,label\nx,1\n", r"no column 'text'; the columns are: 'body', 'label'"),
        ("a.jsonl", b'{"body": "x", "label": 1}\n', r"no column 'text'; the columns are: 'body', 'label'"),
        (
            "a.csv",
            b"text,label\nx,1\n\ny\nz,1\n",
            r"row 2 \(ending on line 4\) has 1 fields, but the header has 2 \('text', 'label'\)",
        ),
        ("a.csv", b'text,label\n"x\ny",1\nz,1,2\n', r"row 2 \(ending on line 4\) has 3 fields"),
        ("a.tsv", b"text\tlabel\na\tb\tc\n", r"row 1 .* has 3 fields"),
        ("a.csv", b'text,label\nx,1\n"open,1\ny,2\n', r"row 2 .*quotes"),
        ("a.csv", b"text,label,text\nx,1,y\n", r"'text' more than once"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', r"line 2: not valid JSON"),
        ("a.jsonl", b'["x"]\n', r"line 1: expected an object"),
        ("a.jsonl", b'{"text": ["x"], "label": 1}\n', r"row 1: column 'text' holds a list"),
        ("a.json", b'[{"text": "x", "label": 1}, {"text": "y" "label": 1}]', r"element 2: not valid JSON"),
        ("a.json", b'{\n"text": "x"}', r"neither a list of JSON objects nor one JSON object per line"),
        ("a.json", b"\0\1binary", r"neither|binary"),
        ("a.txt", b"text", r"not a table: its name must end in"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x", "label": 1}\n' * 99, mtime=0)[:-9],
            r"damaged or truncated \.gz file",
        ),
        ("a.jsonl.zst", b"no frame", r"damaged or truncated \.zst file"),
        ("a.csv", b"text,label\n\xff,1\n", r"byte 11"),
        ("a.jsonl", b'{"text": "\\ud83d!", "label": 1}', r"row 1: lone surrogate"),
    ],
)
def test_an_unreadable_file_is_an_error_with_place_and_cause(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        rows(tmp_path / name, on_invalid="stop")
    assert name in str(caught.value)


def test_lone_surrogates_in_tables_are_replaced_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d!", "n": 1}\n{"text": "\\ud83d\\ude00"}\n')
    report = ReadReport()
    assert [r["text"] for r in rows(tmp_path / "a.jsonl", ["text"], report=report)] == ["\ufffd!", "\U0001f600"]
    assert report.replaced_bytes == 2


def test_rows_are_documents(tmp_path):
    (tmp_path / "a.csv").write_text(csv_text())
    report = ReadReport()
    config = CorpusConfig(sources=str(tmp_path / "a.csv"), split="hash")
    assert list(iter_documents(config, "all", report)) == [text for text in TEXTS if text] and report.empty == 1
    with pytest.raises(DataError, match=r"no column 'body'.*'id', 'text', 'label'"):
        list(iter_documents(CorpusConfig(sources={"path": str(tmp_path / "a.csv"), "text": "body"}), "all"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Replace `datasets.load_dataset` by one that returns rows from memory, and record its calls."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    dataset = datasets.Dataset.from_dict({"text": ["a", "NA", "b"], "label": [0, 1, -1]}, features=features)
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return dataset.to_iterable_dataset() if options["streaming"] else dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets_by_name(hub, streaming):
    found = list(iter_rows("org/name:config", "test", ["label", "text"], streaming))
    assert found[0] == {"label": "neg", "text": "a"} and [row["label"] for row in found] == ["neg", "pos", None]
    assert hub == [(("org/name", "config"), {"split": "test", "streaming": streaming})]
    list(iter_rows("hf://datasets/org/name", None, ["text"]))
    assert hub[-1] == (("org/name", None), {"split": "train", "streaming": False})
    with pytest.raises(DataError, match=r"org/name: no column 'body'; the columns are: 'text', 'label'"):
        list(iter_rows("org/name", None, ["body"], streaming))
    source = {"path": "org/name", "streaming": streaming}
    assert list(iter_documents(CorpusConfig(sources=source, split="hash"), "all")) == ["a", "NA", "b"]


def test_a_local_path_wins_over_the_hub(hub, tmp_path):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    (tmp_path / "org" / "name" / "a.csv").write_text("text\nlocal\n")
    assert list(iter_rows("org/name", None, ["text"])) == [{"text": "local"}] and not hub
    with pytest.raises(DataError, match="Did you mean org/name"):
        list(iter_rows("org/nane", None, ["text"]))


def test_the_fingerprint_of_a_dataset_is_its_content_or_its_commit(hub, monkeypatch):
    import huggingface_hub

    commits = iter(["c0ffee", "c0ffee", "decaf"])
    info = type("Info", (), {"sha": property(lambda self: next(commits))})()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name: info)
    streamed = [corpus_fingerprint(CorpusConfig(sources={"path": "org/name", "streaming": True})) for _ in range(3)]
    assert streamed[0] == streamed[1] != streamed[2] and not hub
    assert corpus_fingerprint(CorpusConfig(sources="org/name")) == corpus_fingerprint(CorpusConfig(sources="org/name"))


def test_without_a_network_the_error_names_the_alternatives(tmp_path, monkeypatch):
    import datasets

    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"Couldn't reach") as caught:
        list(iter_documents(CorpusConfig(sources="org/name:config")))
    (tmp_path / "orgs").mkdir()
    with pytest.raises(DataError, match=r"Did you mean orgs\? "):
        list(iter_documents(CorpusConfig(sources="org/name")))
    for word in ("org/name", "config", "split train", ".jsonl", ".parquet", "hf download org/name"):
        assert word in str(caught.value)


def test_a_folder_from_save_to_disk(tmp_path):
    import datasets

    splits = {name: datasets.Dataset.from_dict({"text": [name, "x"]}) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "all"))
    splits["test"].save_to_disk(str(tmp_path / "one"))
    assert list(iter_rows(str(tmp_path / "all"), "test", ["text"])) == [{"text": "test"}, {"text": "x"}]
    assert list(iter_rows(str(tmp_path / "one"), None, ["text"])) == [{"text": "test"}, {"text": "x"}]
    with pytest.raises(DataError, match="no split 'dev'; it has: train, test"):
        list(iter_rows(str(tmp_path / "all"), "dev", ["text"]))
