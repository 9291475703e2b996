"""Reading documents: formats, bad input, weights, and the split into training and validation text."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mini_llm.corpus.config import CorpusConfig, SourceConfig
from mini_llm.corpus.documents import MAX_DOCUMENT_BYTES, iter_documents, resolve_split
from mini_llm.corpus.hash_set import HashSet
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.stdlib import iter_stdlib_files
from mini_llm.engine.config import load_config
from mini_llm.engine.errors import ConfigError, DataError


def read(sources, part="all", report=None, **settings):
    return list(iter_documents(CorpusConfig(sources=sources, **settings), part, report))


def parts(sources, **settings):
    return tuple(read(sources, part, **settings) for part in ("train", "validation"))


def write_rows(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_a_string_stands_for_a_source_and_for_a_list():
    config = load_config(CorpusConfig, overrides=["sources=a.txt", "validation=[b.txt, {path: c.csv, text: body}]"])
    assert config.sources == [SourceConfig(path="a.txt")]
    assert config.validation == [SourceConfig(path="b.txt"), SourceConfig(path="c.csv", text="body")]
    with pytest.raises(ConfigError, match=r"sources\.0\.wieght.*weight"):
        load_config(CorpusConfig, overrides=["sources=[{path: a.txt, wieght: 2}]"])
    for wrong in ("sources=[]", "sources=[{path: a, weight: 0}]", "validation_fraction=1"):
        with pytest.raises(ConfigError):
            load_config(CorpusConfig, overrides=[wrong])


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        ("stdlib", ""),
        ("data/input.txt", "input"),
        ("data/reviews.jsonl.gz", "reviews"),
        ("data/books/*.txt", "books"),
        ("my corpus/", "my-corpus"),
        ("org/name:config", "name-config"),
        (["stdlib", "a.txt"], "stdlib-a"),
    ],
)
def test_a_corpus_has_a_short_name(sources, name):
    assert CorpusConfig(sources=sources).name == name


def test_the_built_in_corpus_is_the_standard_library_without_its_tests():
    names, texts = zip(*iter_stdlib_files(), strict=True)
    assert list(names) == sorted(names) and "json/decoder.py" in names
    assert not any("test" in name.split("/")[:-1] or "site-packages" in name for name in names)
    assert 8e6 < sum(map(len, texts)) < 20e6
    train, validation = parts("stdlib")
    assert len(train) > 20 * len(validation) > 0


def test_a_folder_is_read_in_order_of_names_without_hidden_and_binary_files(tmp_path):
    for name, text in {
        "b.txt": "two",
        "a/z.md": "one",
        ".git/config": "hidden",
        "c.json": '{\n "not": "rows"\n}',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0\1")
    write_rows(tmp_path / "d.jsonl", ["three", "four"])
    report = ReadReport()
    texts = read(str(tmp_path), report=report, split="hash")
    assert texts == ["one", "two", '{\n "not": "rows"\n}', "three", "four"]
    assert report.skipped_binary == 1 and "image.png" in str(report)
    assert read(str(tmp_path / "*.txt"), split="hash") == ["two"]
    assert read(str(tmp_path / "**" / "*.md"), split="hash") == ["one"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\rc\xe2\x80\xa8d\n", "a\r\nb\rc\u2028d\n"),  # CRLF, lone CR and U+2028 stay
        (b"\xef\xbb\xbfBOM", "BOM"),
        ("\ufeffl\u00e9 \U0001f600".encode("utf-16-le"), "l\u00e9 \U0001f600"),
        ("\ufeffl\u00e9 \U0001f600".encode("utf-16-be"), "l\u00e9 \U0001f600"),
        ("plain ascii".encode("utf-16-le"), "plain ascii"),
        ("\ufeffutf-32".encode("utf-32-le"), "utf-32"),
    ],
)
def test_text_is_decoded_and_otherwise_kept_as_it_is(tmp_path, data, text):
    (tmp_path / "a.txt").write_bytes(data)
    assert read(str(tmp_path / "a.txt"), split="hash") == [text]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_invalid_bytes_are_replaced_and_counted_or_stop_with_their_place(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("mini_llm.corpus.text.CHUNK", chunk)  # of 7 bytes: characters are cut in two
    path = tmp_path / "latin.txt"
    data = "gr\u00fcn \ufffd \U0001f600 ".encode() + b"caf\xe9 \xff\xfe end \xf0\x9f"
    path.write_bytes(data)
    report = ReadReport()
    assert "".join(read(str(path), report=report)) == data.decode(errors="replace")
    assert report.replaced == {str(path): 5} and "latin.txt: 5" in str(report)
    with pytest.raises(DataError, match=rf"latin\.txt: invalid utf-8 at byte {data.index(0xE9)}\b"):
        read(str(path), on_invalid="stop")


@pytest.mark.parametrize("name", ["empty.txt", "blank.txt", "binary.txt", "missing.txt", "cut.txt.gz", "folder"])
def test_a_source_without_text_is_a_data_error_that_names_it(tmp_path, name):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0\1")
    (tmp_path / "cut.txt.gz").write_bytes(bytes.fromhex("1f8b0800000000000003"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.bin").write_bytes(b"\0\1\2")
    with pytest.raises(DataError, match=name) as caught:
        read(str(tmp_path / name))
    assert caught.value.exit_code == 3


def test_the_error_of_a_missing_column_names_the_setting_that_chooses_another(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match=r"the columns are: 'body'. Name the right one: corpus.sources.0.text=COLUMN"):
        read(str(path))


def test_a_misspelt_path_is_answered_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "input.txt").write_text("x")
    for wrong in ("data/inptu.txt", "dta/input.txt", str(tmp_path / "data" / "inptu")):
        with pytest.raises(DataError, match=r"Did you mean .*(input\.txt|data)\?"):
            read(wrong)


def test_few_documents_are_split_where_nanogpt_splits(tmp_path):
    text = "".join(random.Random(0).choices("ab\u00e9\U0001f600 \n", k=11_153))
    (tmp_path / "input.txt").write_text(text, newline="")
    train, validation = parts(str(tmp_path / "input.txt"))
    assert resolve_split(CorpusConfig(sources=str(tmp_path / "input.txt"))) == "tail"
    assert "".join(train) == text[: int(len(text) * 0.9)] and "".join(validation) == text[int(len(text) * 0.9) :]
    train, _ = parts(str(tmp_path / "input.txt"), validation_fraction=0.25)
    assert len("".join(train)) == int(11_153 * 0.75)


def test_a_document_never_changes_its_part(tmp_path):
    texts = [f"document number {i}" for i in range(2_000)]
    before = parts(write_rows(tmp_path / "a.jsonl", texts))
    after = parts(write_rows(tmp_path / "b.jsonl", ["new one", *reversed(texts), "another"]))
    assert set(before[0]) <= set(after[0]) and set(before[1]) <= set(after[1])
    assert len(before[1]) == pytest.approx(40, abs=20) and sorted(before[0] + before[1]) == sorted(texts)
    assert set(parts(str(tmp_path / "a.jsonl"), seed=1)[1]) != set(before[1])


@pytest.mark.parametrize("settings", [{"split": "hash", "validation_fraction": 0.3}, {"split": "tail"}])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_training_and_validation_share_no_text(tmp_path, settings, deduplicate):
    texts = [random.Random(i % 60).choice(["x" * 10, "y"]) * (1 + i % 30) for i in range(120)]
    path = write_rows(tmp_path / "a.jsonl", texts)
    report = ReadReport()
    train, validation = parts(path, deduplicate=deduplicate, **settings)
    read(path, report=report, deduplicate=deduplicate, **settings)
    assert train and validation and not set(train) & set(validation)
    if deduplicate:
        assert len(set(train)) == len(train) and len(set(validation)) == len(validation) and report.duplicates
    else:
        assert len(set(train)) < len(train) and not report.duplicates


def test_given_validation_is_kept_out_of_training(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", ["a", "b", "c", "b"])
    validation = write_rows(tmp_path / "validation.jsonl", ["b", "d"])
    report = ReadReport()
    assert read(train, "train", report, validation=validation) == ["a", "c"] and report.overlap == 2
    assert read(train, "validation", validation=validation) == ["b", "d"]
    assert read(train, "train", validation=validation, deduplicate=False) == ["a", "c"]


def test_weights_repeat_or_drop_training_documents_only(tmp_path):
    texts = [f"text {i}" for i in range(400)]
    path = write_rows(tmp_path / "a.jsonl", texts)
    train, validation = parts(path)
    twice = parts([{"path": path, "weight": 2.0}])
    assert sorted(twice[0]) == sorted(train * 2) and twice[1] == validation
    assert twice[0] == train + train  # the repeat comes after the others, not at once
    half = parts([{"path": path, "weight": 0.5}])
    assert set(half[0]) < set(train) and len(half[0]) == pytest.approx(len(train) / 2, abs=40)
    assert half[1] == validation
    even = {"validation_fraction": 0.5}
    chosen = parts([{"path": path, "weight": 0.5}], **even)[0]  # one hash must not decide on both
    assert len(chosen) == pytest.approx(len(parts(path, **even)[0]) / 2, abs=40)
    more = read([{"path": path, "weight": 2.5}], "train")
    assert {text for text in train if more.count(text) == 3} == set(half[0])
    with pytest.raises(DataError, match="drops all 1 training documents"):
        read([{"path": write_rows(tmp_path / "one.jsonl", ["only"]), "weight": 0.001}])


def test_a_long_document_is_split_losslessly_at_lines_or_spaces(tmp_path, monkeypatch):
    monkeypatch.setattr("mini_llm.corpus.documents.MAX_DOCUMENT_BYTES", 100)
    lines = "".join(f"line {i} is here\n" for i in range(100))
    words = " ".join(f"word{i}" for i in range(300))
    solid = "\u00e9\U0001f600" * 100
    for text, ends in ((lines, "\n"), (words, ""), (solid, "")):
        (tmp_path / "a.txt").write_text(text, newline="")
        report = ReadReport()
        pieces = read(str(tmp_path / "a.txt"), report=report, split="hash", deduplicate=False)
        assert "".join(pieces) == text and report.cut == 1
        assert all(len(piece.encode()) <= 100 for piece in pieces) and all(p.endswith(ends) for p in pieces)
        monkeypatch.setattr("mini_llm.corpus.text.CHUNK", 13)
        assert read(str(tmp_path / "a.txt"), split="hash", deduplicate=False) == pieces
    assert all(piece.startswith(" ") for piece in read([write_text(tmp_path, words)], split="hash")[1:])


def write_text(folder, text):
    (folder / "words.txt").write_text(text)
    return str(folder / "words.txt")


def test_one_long_line_takes_little_memory(tmp_path):
    with (tmp_path / "line.txt").open("wb") as file:
        for i in range(90):
            file.write((f"{i} " + "word \xc3\xa9 " * 120_000).encode("latin-1"))
    code = (
        "import sys\nfrom mini_llm.corpus.config import CorpusConfig\n"
        "from mini_llm.corpus.documents import iter_documents\n"
        "from tests.engine.peak_memory import peak_bytes\nbefore = peak_bytes()\n"
        "sizes = [len(t.encode()) for t in iter_documents(CorpusConfig(sources=sys.argv[1]), 'all')]\n"
        "print(sum(sizes), max(sizes), peak_bytes() - before)"
    )
    root = Path(__file__).parents[2]
    output = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "line.txt")], text=True, cwd=root)
    total, largest, growth = map(int, output.split())
    assert total == (tmp_path / "line.txt").stat().st_size > 86e6 and largest <= MAX_DOCUMENT_BYTES
    assert growth < 50e6


def test_the_hash_set_is_exact(monkeypatch):
    monkeypatch.setattr("mini_llm.corpus.hash_set.RECENT", 50)
    digests = [hashlib.blake2b(bytes([i % 256, i // 256]), digest_size=16).digest() for i in range(1_000)]
    digests += [b"\0" * 16, b"\1" + b"\0" * 15, b"\0" * 15 + b"\1"]
    seen, expected = HashSet(), set()
    for digest in random.Random(0).choices(digests, k=3_000):
        assert seen.add(digest) == (digest not in expected)
        expected.add(digest)
    assert len(seen) == len(expected) and all((digest in seen) == (digest in expected) for digest in digests)


def test_importing_the_corpus_loads_no_heavy_module():
    code = (
        "import sys, mini_llm.corpus.config, mini_llm.corpus.documents, mini_llm.corpus.tables, mini_llm.corpus.build\n"
        "print([m for m in ('torch', 'datasets', 'pandas', 'pyarrow', 'transformers', 'wandb') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
