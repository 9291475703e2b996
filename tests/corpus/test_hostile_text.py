"""Text that is not what it says: encodings, JSON layouts, files without header, splits in folders, separators."""

import json

import pytest

from mini_llm.corpus.config import CorpusConfig, SourceConfig
from mini_llm.corpus.documents import iter_documents, resolve_split
from mini_llm.corpus.encoding import check_encoding, guess_encoding, suggest_encoding
from mini_llm.corpus.fingerprint import corpus_fingerprint
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.separators import split_documents
from mini_llm.corpus.tables import iter_file_rows, iter_rows
from mini_llm.engine.errors import DataError

RUSSIAN = "\u0445\u043e\u0440\u043e\u0448\u0438\u0439 \u0444\u0438\u043b\u044c\u043c, \u043f\u043b\u043e\u0445\u043e\n"
JAPANESE = "\u697d\u3057\u3044\u6620\u753b\u3067\u3059,\u826f\u3044\n"
CHINESE = "\u597d\u770b\u7684\u7535\u5f71,\u6b63\u9762\n"
KOREAN = "\uc88b\uc740 \uc601\ud654\uc785\ub2c8\ub2e4,\uae0d\uc815\n"
FRENCH = "film tr\u00e8s bon, \u00e0 \u00e9viter\n"
GREEK = "\u03ba\u03b1\u03bb\u03ae \u03c4\u03b1\u03b9\u03bd\u03af\u03b1,\u03b8\u03b5\u03c4\u03b9\u03ba\u03cc\n"
POLISH = "za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144\n"
TURKISH = "k\u00f6t\u00fc, s\u0131k\u0131c\u0131\n"


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((RUSSIAN, name) for name in ("cp1251", "koi8_r", "cp866")),
        *((JAPANESE, name) for name in ("shift_jis", "euc_jp")),
        *((CHINESE, name) for name in ("gbk", "gb18030")),
        (KOREAN, "euc_kr"),
        *((FRENCH, name) for name in ("latin_1", "cp1252", "mac_roman")),
        (GREEK, "cp1253"),
        *((POLISH, name) for name in ("cp1250", "iso8859_2")),
        (TURKISH, "cp1254"),
    ],
)
def test_encodings_are_guessed_from_a_few_words(text, encoding, rows, tmp_path):
    data = ("text,label\n" + text * rows).encode(encoding)
    assert data.decode(guess_encoding(data)) == data.decode(encoding)
    (tmp_path / "a.csv").write_bytes(data)
    assert "Most of the file is UTF-8" not in suggest_encoding(str(tmp_path / "a.csv"), "data.encoding")


def test_a_file_of_two_encodings_is_called_so(tmp_path):
    lines = [f"caf\u00e9 {i},a\n".encode("utf-8" if i % 3 else "cp1252") for i in range(30)]
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + b"".join(lines))
    assert suggest_encoding(str(tmp_path / "a.csv"), "data.encoding").startswith("Most of the file is UTF-8")


def test_the_advice_names_the_encoding_and_shows_what_it_reads(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(("a,b\n" + RUSSIAN * 5).encode("cp1251"))
    assert suggest_encoding(str(path), "data.encoding").endswith("set data.encoding=cp1251")
    assert RUSSIAN.split()[0] in suggest_encoding(str(path), "data.encoding")
    path.write_text("a,b\n\ufffd,1\n", encoding="utf-8")
    assert "older" in suggest_encoding(str(path), "data.encoding")
    for name in ("utf-9", "base64", "\0"):
        with pytest.raises(ValueError, match="unknown encoding"):
            check_encoding(name)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("text", [RUSSIAN, JAPANESE, FRENCH])
def test_utf_16_is_recognized_without_a_mark(tmp_path, encoding, text):
    path = tmp_path / "a.txt"
    path.write_bytes((text * 20).encode(encoding))
    assert "".join(iter_documents(CorpusConfig(sources=str(path)), "all")) == text * 20


def test_a_corpus_is_read_in_its_encoding_and_invalid_bytes_are_reported(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes((RUSSIAN * 20).encode("cp1251"))
    report = ReadReport()
    list(iter_documents(CorpusConfig(sources=str(path)), "all", report))
    assert "set corpus.sources.0.encoding=cp1251" in str(report)
    source = SourceConfig(path=str(path), encoding="cp1251")
    assert "".join(iter_documents(CorpusConfig(sources=[source]), "all")) == RUSSIAN * 20
    path.write_text("\ufeffa\n", encoding="utf-8")
    source = SourceConfig(path=str(path), encoding="utf-8")
    assert "".join(iter_documents(CorpusConfig(sources=[source]), "all")) == "a"


ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.mark.parametrize(
    "tree",
    [
        {"data": ROWS},
        {"version": "1", "meta": {"a": 1}, "rows": ROWS, "more": [1, 2]},
        {"rows": [{"row_idx": i, "row": row} for i, row in enumerate(ROWS)]},
        {"text": ["a", "b"], "label": ["x", "y"]},
        {"columns": ["text", "label"], "data": [["a", "x"], ["b", "y"]]},
        {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
        {"0": ROWS[0], "1": ROWS[1]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_inside_one_json_object(tmp_path, tree, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(tree, indent=indent))
    assert list(iter_rows(str(path), None, ["text", "label"])) == ROWS


def test_one_row_with_a_list_of_objects_stays_a_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"text": "a", "spans": [{"start": 1}]}))
    assert list(iter_rows(str(path), None, ["text"])) == [{"text": "a"}]


def test_a_file_without_header_is_read_by_column_numbers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("good film,pos\nbad film,neg\nfine,pos\n")
    report = ReadReport()
    rows = list(iter_file_rows(path, ["1", "2"], "replace", report))
    assert rows[0] == {"1": "good film", "2": "pos"} and len(rows) == 3 and "without a header" in report.notes[0]
    assert list(iter_file_rows(path, [], "replace", report, names=["1"])) == rows
    with pytest.raises(DataError, match="1 for 'good film', 2 for 'pos'"):
        list(iter_rows(str(path), None, ["text", "label"]))


def test_files_named_after_splits_are_splits(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name} text\n")
    (tmp_path / "README.md").write_text("read me\n")
    config, report = CorpusConfig(sources=str(tmp_path)), ReadReport()
    assert resolve_split(config) == "given"
    assert list(iter_documents(config, "train", report)) == ["train text\n"]
    assert list(iter_documents(config, "validation")) == ["validation text\n"]
    assert "train: train.txt; validation: validation.txt; not read:" in str(report)
    (tmp_path / "validation.txt").unlink()
    (tmp_path / "train.txt").write_text("\n".join(map(str, range(100))))
    assert not any("test" in text for text in iter_documents(config, "all"))
    code = tmp_path / "code"
    code.mkdir()
    for name in ("train.py", "test.py", "model.py"):
        (code / name).write_text(f"# {name}\n")
    assert len(list(iter_documents(CorpusConfig(sources=str(code)), "all"))) >= 3


@pytest.mark.parametrize(
    ("separator", "text"),
    [
        ("<|endoftext|>", "a b\nc\n<|endoftext|>\nd\n<|endoftext|>"),
        ("blank-line", "a b\nc\n\n \r\n\nd\n"),
        ("line", "a b\r\n\nc\nd"),
        ("\\n===\\n", "a b\nc\n===\nd"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_documents_inside_a_file(tmp_path, separator, text, chunk):
    chunks = [text[i : i + chunk] for i in range(0, len(text), chunk)]
    expected = ["a b", "c", "d"] if separator == "line" else ["a b\nc", "d"]
    assert [part.replace("\r", "") for part in split_documents(chunks, separator)] == expected
    path = tmp_path / "a.txt"
    path.write_text(text, newline="")
    config = CorpusConfig(sources=str(path), separator=separator)
    assert corpus_fingerprint(config) != corpus_fingerprint(CorpusConfig(sources=str(path)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("story\n<|endoftext|>\n" * 9, "'<|endoftext|>'"),
        ("one\ntwo\n\n" * 30, "blank-line"),
        ("one review\n" * 30, "line"),
        ("one line", None),
    ],
)
def test_a_file_full_of_separators_is_noticed(tmp_path, text, value):
    path, report = tmp_path / "a.txt", ReadReport()
    path.write_text(text)
    list(iter_documents(CorpusConfig(sources=str(path)), "all", report))
    assert (f"corpus.separator={value}" in str(report)) if value else not report.notes
