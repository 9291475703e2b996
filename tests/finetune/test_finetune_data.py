"""Labelled data: label names, splits that do not leak, errors that name rows, and the built-in task."""

import json
import random
import re
from collections import Counter

import pytest

from finetune.data import load_examples
from finetune.data_config import DataConfig
from finetune.examples import Example
from finetune.made.stdlib import load_stdlib_task, split_files
from finetune.quality.labels import label_name, label_names
from finetune.quality.splitting import split_validation
from mini_llm.engine.config import load_config
from mini_llm.engine.errors import ConfigError, DataError


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(count, labels=("a", "b"), prefix="text"):
    return [{"text": f"{prefix} {i}", "label": labels[i % len(labels)]} for i in range(count)]


def texts(examples):
    return [example.text for example in examples]


@pytest.fixture
def train(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", rows_of(40))


# Labels


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (3, "3"),
        (3.0, "3"),
        ("3", "3"),
        (2.5, "2.5"),
        (True, "True"),
        (" good ", "good"),
        ("NA", "NA"),
        (0, "0"),
        (-1, "-1"),
    ],
)
def test_labels_of_any_type_have_one_name(value, name):
    assert label_name(value, "") == name


@pytest.mark.parametrize("value", [None, float("nan"), "", "  "])
def test_a_missing_label_is_not_a_label_name(value):
    assert label_name(value, "") is None


def test_a_list_is_not_a_label():
    with pytest.raises(DataError, match="row 3"):
        label_name(["a", "b"], "x.jsonl row 3")


def test_label_names_are_sorted_by_value_or_natural_order():
    assert label_names({"10", "9", "-1", "2.5"}) == ["-1", "2.5", "9", "10"]
    assert label_names({"grade 10", "grade 2", "Other"}) == ["grade 2", "grade 10", "Other"]
    assert label_names({"10", "9", "x"}) == ["9", "10", "x"]
    assert label_names({"5\u00b2", "5"}) == ["5", "5\u00b2"]


def test_label_ids_follow_the_names_not_the_rows(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": f"t{i}", "label": 10 - i % 3} for i in range(30)])
    splits = load_examples(DataConfig(path=path))
    assert splits.names == ["8", "9", "10"]
    for example in splits.train + splits.validation:
        assert splits.names[example.label] == str(10 - int(example.text[1:]) % 3)


# Splits


def test_validation_is_stratified_seeded_and_independent_of_order():
    examples = [Example(f"text {i}", int(i % 10 == 0), f"row {i}") for i in range(1000)]
    train, validation = split_validation(examples, 0.1, seed=0)
    assert Counter(e.label for e in validation) == {0: 90, 1: 10}
    assert sorted(texts(train) + texts(validation)) == sorted(texts(examples))
    shuffled = random.Random(1).sample(examples, len(examples))
    assert set(texts(split_validation(shuffled, 0.1, seed=0)[1])) == set(texts(validation))
    assert set(texts(split_validation(examples, 0.1, seed=1)[1])) != set(texts(validation))


def test_equal_texts_never_straddle_the_split():
    examples = [Example(f" text {i % 70}" + " " * (i % 3), i % 2, "") for i in range(400)]
    train, validation = split_validation(examples, 0.2, seed=0)
    assert not {t.strip() for t in texts(train)} & {t.strip() for t in texts(validation)}
    assert 0.15 < len(validation) / 400 < 0.25


def test_every_label_keeps_a_training_text():
    examples = [
        Example("only one", 0, ""),
        *(Example(t, 1, "") for t in ("x", "y")),
        *(Example("same", 2, "") for _ in "123"),
    ]
    train, validation = split_validation(examples, 0.5, seed=0)
    assert {e.label for e in train} == {0, 1, 2}
    assert {e.label for e in validation} == {1}


def test_the_test_split_is_never_used_for_validation(tmp_path, train):
    test = write_jsonl(tmp_path / "test.jsonl", rows_of(50, prefix="test"))
    splits = load_examples(DataConfig(path=train, test=test))
    assert len(splits.test) == 50 and len(splits.train) + len(splits.validation) == 40
    assert not any(text.startswith("test") for text in texts(splits.train + splits.validation))
    alone = load_examples(DataConfig(path=train))
    assert alone.test is None and alone.validation == splits.validation


def test_a_given_validation_file_is_used_unchanged(tmp_path, train):
    validation = write_jsonl(tmp_path / "dev.jsonl", rows_of(6, prefix="dev"))
    splits = load_examples(DataConfig(path=train, validation=validation))
    assert len(splits.train) == 40 and texts(splits.validation) == [f"dev {i}" for i in range(6)]
    assert splits.validation[2].source == f"{validation} row 3"


def test_texts_shared_with_training_are_reported(tmp_path, train):
    test = write_jsonl(tmp_path / "test.jsonl", [*rows_of(2), {"text": "new", "label": "a"}])
    splits = load_examples(DataConfig(path=train, test=test))
    assert any("2 of 3 test texts are also in the training data" in note for note in splits.notes)


def test_splits_of_a_saved_dataset_keep_their_label_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    parts = {
        name: datasets.Dataset.from_list(
            [{"text": f"{name} {i}", "label": i % 2} for i in range(20)], features=features
        )
        for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    splits = load_examples(DataConfig(path=str(tmp_path / "saved"), test_split="test"))
    assert splits.names == ["neg", "pos"]
    assert texts(splits.test) == [f"test {i}" for i in range(20)]
    assert all(text.startswith("train") for text in texts(splits.train + splits.validation))


# Files


def test_csv_text_is_kept_unchanged(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_bytes(
        b'\xef\xbb\xbfreview;stars\r\n"one\nwith ""quotes""; and lines";5\r\n'
        b"NA;1\r\nnull;5\r\n<s> caf\xc3\xa9 </s>;1\r\n"
    )
    copy = tmp_path / "copy.csv"
    copy.write_bytes(path.read_bytes())
    splits = load_examples(DataConfig(path=str(path), text="review", label="stars", validation=str(copy), leaks="keep"))
    assert splits.names == ["1", "5"]
    assert texts(splits.train) == ['one\nwith "quotes"; and lines', "NA", "null", "<s> caf\u00e9 </s>"]
    assert [e.label for e in splits.train] == [1, 0, 1, 0]


def test_parquet_labels_of_every_kind(tmp_path):
    pandas = pytest.importorskip("pandas")
    for labels in ([True, False] * 10, [1.0, 2.0] * 10, [1, 2] * 10, ["x", "y"] * 10):
        frame = pandas.DataFrame({"text": [f"t{i}" for i in range(20)], "label": labels})
        frame.to_parquet(tmp_path / "d.parquet")
        splits = load_examples(DataConfig(path=str(tmp_path / "d.parquet")))
        assert splits.names == sorted({str(int(v)) if isinstance(v, float) else str(v) for v in labels})


# Errors


def fails(config, *parts):
    with pytest.raises(DataError) as error:
        load_examples(config)
    for part in parts:
        assert part in str(error.value), f"{part!r} not in {error.value}"


def test_missing_column_lists_the_columns(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"body": "x", "stars": 1}])
    fails(DataConfig(path=path), "d.jsonl", "'text'", "'body'", "'stars'")


def test_rows_without_text_or_label_are_named(tmp_path):
    rows = rows_of(10)
    rows[2]["label"] = rows[4]["label"] = None
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    fails(DataConfig(path=path), "'label'", "2 of 10 rows", "rows 3, 5", "on_null=skip")
    rows[6]["text"] = "  "
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    splits = load_examples(DataConfig(path=path, on_null="skip"))
    assert len(splits.train) + len(splits.validation) == 7
    assert sum("skipped" in note for note in splits.notes) == 2


def test_unseen_labels_in_the_test_data_are_an_error(tmp_path, train):
    rows = rows_of(6)
    rows[1]["label"], rows[4]["label"], rows[5]["label"] = "c", "d", "c"
    test = write_jsonl(tmp_path / "test.jsonl", rows)
    fails(DataConfig(path=train, test=test), "test.jsonl", "'c' in rows 2, 6", "'d' in row 5", "Known labels: a, b")
    fails(DataConfig(path=train, validation=test), "'c' in rows 2, 6")


def test_one_label_is_not_a_task(tmp_path):
    fails(DataConfig(path=write_jsonl(tmp_path / "d.jsonl", rows_of(9, ("a",)))), "all 9 rows", "'a'", "two labels")


def test_a_column_of_identifiers_is_not_a_label(tmp_path):
    rows = [{"text": f"t{i}", "label": f"id-{i}"} for i in range(100)]
    fails(DataConfig(path=write_jsonl(tmp_path / "d.jsonl", rows)), "100 different values", "data.label=COLUMN")


def test_nothing_left_for_validation(tmp_path):
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    fails(DataConfig(path=write_jsonl(tmp_path / "d.jsonl", rows)), "data.validation=FILE")


def test_empty_file(tmp_path):
    (tmp_path / "d.jsonl").touch()
    fails(DataConfig(path=str(tmp_path / "d.jsonl")), "d.jsonl", "no labelled rows")


def test_training_rows_are_never_scored(tmp_path, train):
    part = "is part of the training data"
    fails(DataConfig(path=train, test=train), "the test data", part, "data.test=FILE")
    fails(DataConfig(path=train, validation=str(tmp_path / "." / "train.jsonl")), "the validation data", part)
    fails(DataConfig(path=str(tmp_path), test=train), part)
    fails(DataConfig(path=str(tmp_path / "*.jsonl"), test=train), part)
    # A file has no splits: it would be read whole again.
    fails(DataConfig(path=train, test_split="test"), part, "data.test_split=NAME")


def test_the_built_in_task_takes_no_other_splits():
    with pytest.raises(ConfigError, match="own splits"):
        load_config(DataConfig, overrides=["test=test.csv"])


# Files that are not as expected


def test_labels_that_differ_in_case_or_unicode_form_are_reported(tmp_path, train):
    rows = [*rows_of(20, ("Pos", "pos", "neg", "caf\u00e9", "cafe\u0301")), *rows_of(3, prefix="more")]
    splits = load_examples(DataConfig(path=write_jsonl(tmp_path / "d.jsonl", rows)))
    notes = [note for note in splits.notes if "only in case" in note]
    assert len(notes) == 2 and "'Pos' (4 rows) and 'pos' (4 rows)" in "".join(notes)
    assert "'caf\\xe9' (4 rows) and 'cafe\\u0301' (4 rows)" in "".join(notes)
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "x", "label": "A"}])
    fails(DataConfig(path=train, test=test), "'A' in row 1 (differs from 'a' only in case", "Known labels: a, b")


def test_a_label_with_one_example_is_reported(tmp_path):
    rows = [*rows_of(20), {"text": "x", "label": "c"}]
    splits = load_examples(DataConfig(path=write_jsonl(tmp_path / "d.jsonl", rows)))
    assert any("1 of 3 labels have one training example only: c" in note for note in splits.notes)
    assert all(e.label != 2 for e in splits.validation)


def test_more_classes_than_rows_leave_nothing_to_hold_out(tmp_path):
    rows = [{"text": f"t{i}", "label": f"c{i}"} for i in range(20)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    fails(DataConfig(path=path), "no label has two different texts", "data.validation=FILE")
    held = write_jsonl(tmp_path / "v.jsonl", [{"text": "new", "label": "c3"}])
    splits = load_examples(DataConfig(path=path, validation=held))
    assert len(splits.names) == 20 and any("20 of 20 labels have one training example" in n for n in splits.notes)


def test_empty_texts_are_rows_without_text(tmp_path):
    rows = rows_of(10)
    rows[3]["text"] = ""
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    fails(DataConfig(path=path), "'text' is empty in 1 of 10 rows: row 4", "data.on_null=skip")
    (tmp_path / "d.csv").write_text("text,label\none,a\n,b\n")
    fails(DataConfig(path=str(tmp_path / "d.csv")), "'text' is empty in 1 of 2 rows: row 2")


def test_rows_in_several_files_are_named_with_their_file(tmp_path):
    rows = rows_of(4)
    rows[1]["label"] = None
    write_jsonl(tmp_path / "a.jsonl", rows_of(3, prefix="a"))
    path = write_jsonl(tmp_path / "b.jsonl", rows)
    fails(DataConfig(path=str(tmp_path)), "in 1 of 7 rows", f"{path} row 2")


def test_keys_missing_from_the_first_json_rows_are_nulls_not_errors(tmp_path):
    rows = [{"text": "first"}, {"label": "a"}, *rows_of(10)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    fails(DataConfig(path=path), "'label' is empty in 1 of 12 rows: row 1")
    splits = load_examples(DataConfig(path=path, on_null="skip"))
    assert len(splits.train) + len(splits.validation) == 10
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert len(load_examples(DataConfig(path=str(tmp_path / "d.json"), on_null="skip")).train) == 8
    path = write_jsonl(tmp_path / "e.jsonl", [{"a": 1}, {"text": "x", "b": 2}])
    fails(DataConfig(path=path), "no column 'label'", "'a', 'text', 'b'", "data.label=COLUMN")


def test_class_label_columns_of_parquet_keep_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(20)]
    datasets.Dataset.from_list([*rows, {"text": "none", "label": -1}], features=features).to_parquet(
        str(tmp_path / "d.parquet")
    )
    splits = load_examples(DataConfig(path=str(tmp_path / "d.parquet"), on_null="skip"))
    assert splits.names == ["neg", "pos"]
    assert all(e.label == int(e.text[1:]) % 2 for e in splits.train + splits.validation)
    fails(DataConfig(path=str(tmp_path / "d.parquet")), "'label' is empty in 1 of 21 rows: row 21")


def test_a_file_without_header_is_an_error_that_says_what_to_add(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('"a wonderful film, which I would see again at any time",1\n"dull",0\n')
    fails(DataConfig(path=str(path)), "no column 'text'", "without header", "2 for '1'")
    path.write_text("body,stars\nx,1\n")
    with pytest.raises(DataError) as error:
        load_examples(DataConfig(path=str(path)))
    assert "without header" not in str(error.value)


def test_labels_in_another_encoding_are_an_error_that_names_it(tmp_path):
    path = tmp_path / "d.csv"
    names = "\u00e9chec", "succ\u00e8s"
    body = "".join(f"un film num\u00e9ro {i}, {names[i % 2]}\n" for i in range(40))
    path.write_bytes(("text,label\n" + body).encode("cp1252"))
    fails(DataConfig(path=str(path)), f"{path} row 1: the label '\\ufffdchec'", "U+FFFD", "set data.encoding=cp125")
    splits = load_examples(DataConfig(path=str(path), encoding="cp1252"))
    assert splits.names == ["succ\u00e8s", "\u00e9chec"] and "num\u00e9ro" in splits.train[0].text
    path.write_bytes(("text,label\n" + body).encode("utf-16"))
    assert load_examples(DataConfig(path=str(path))).names == splits.names
    assert load_examples(DataConfig(path=str(path), encoding="utf-16")).names == splits.names
    path.write_bytes(("text,label\n" + body).encode("cp1252"))
    fails(DataConfig(path=str(path), encoding="utf-8"), "invalid utf-8 at byte")
    path.write_text("text,label\nx,caf\ufffd\n", encoding="utf-8")
    fails(DataConfig(path=str(path)), "valid UTF-8", "origin")
    # The first invalid byte may come late.
    path.write_bytes(b"text,label\n" + b"plain text,yes\n" * 90_000 + "un film,\u00e9chec\n".encode("cp1252") * 30)
    fails(DataConfig(path=str(path)), "row 90001", "set data.encoding=")


def test_texts_with_replaced_bytes_are_counted(tmp_path):
    rows = "".join(f"caf\u00e9 au lait {i},{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "d.csv").write_bytes(("text,label\n" + rows).encode("latin-1"))
    splits = load_examples(DataConfig(path=str(tmp_path / "d.csv")))
    note = next(note for note in splits.notes if "U+FFFD" in note)
    assert note.startswith("40 texts") and "row 1" in note and "data.encoding=" in note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            json.dumps({"text": "x", "label": "a\0"}),
            r"row 1: the label 'a\\x00' holds the control character U\+0000",
        ),
        ("a.jsonl", json.dumps({"text": "x", "label": "w " * 600}), "row 1: the label .* has 1,199 characters"),
        ("a.csv", "", "a.csv: empty, not even a header. It needs the column 'text'"),
        ("a.xlsx", "PK\3\4\0\0", "a.xlsx: a binary file, neither a table nor text. Save it as CSV"),
    ],
)
def test_files_that_hold_no_labelled_texts_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_examples(DataConfig(path=str(tmp_path / name)))


# Folders


def test_files_of_a_folder_are_splits_by_their_names(tmp_path):
    for name, count in (("train", 20), ("dev_matched", 6), ("test-00000-of-00001", 4)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows_of(count, prefix=name))
    (tmp_path / "README.md").write_text("about")
    splits = load_examples(DataConfig(path=str(tmp_path)))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 6, 4]
    assert texts(splits.validation)[0] == "dev_matched 0"
    note = splits.notes[0]
    assert "train: train.jsonl" in note and "validation: dev_matched.jsonl" in note and "not read: README.md" in note
    held = write_jsonl(tmp_path.parent / "held.jsonl", rows_of(8, prefix="held"))
    splits = load_examples(DataConfig(path=str(tmp_path), validation=held))
    assert len(splits.train) == 20 and len(splits.validation) == 8 and len(splits.test) == 4


def test_a_folder_with_a_test_file_trains_on_the_others(tmp_path):
    write_jsonl(tmp_path / "reviews.jsonl", rows_of(20))
    write_jsonl(tmp_path / "test.jsonl", rows_of(4, prefix="test"))
    splits = load_examples(DataConfig(path=str(tmp_path)))
    assert len(splits.train) + len(splits.validation) == 20 and len(splits.test) == 4


def test_a_folder_without_such_names_is_read_whole(tmp_path):
    for name in ("trainer", "testimonials", "values"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows_of(10, prefix=name))
    splits = load_examples(DataConfig(path=str(tmp_path)))
    assert len(splits.train) + len(splits.validation) == 30 and splits.test is None


@pytest.mark.parametrize("labels", [{}, {"label": -1}, {"label": None}])
def test_a_test_file_without_labels_in_a_folder_is_not_used(tmp_path, labels):
    write_jsonl(tmp_path / "train.jsonl", rows_of(20))
    write_jsonl(tmp_path / "test.jsonl", [{"text": f"t {i}"} | labels for i in range(4)])
    splits = load_examples(DataConfig(path=str(tmp_path)))
    assert splits.test is None and any("no labels in 'label'" in note for note in splits.notes)
    # A file that the settings name must have labels.
    with pytest.raises(DataError):
        load_examples(DataConfig(path=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl")))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("stdlib", ""),
        ("../x/sst2/train.tsv", "sst2"),
        ("Reviews 2.jsonl.gz", "reviews-2"),
        ("org/name:config", "name-config"),
    ],
)
def test_name_for_runs(path, name):
    assert DataConfig(path=path).name == name


# The built-in task


@pytest.fixture(scope="module")
def task():
    return load_stdlib_task()


@pytest.mark.slow
def test_built_in_task_has_its_size(task):
    assert len(task.names) >= 10
    assert 4000 <= len(task.train) + len(task.validation) + len(task.test) <= 6000
    for _, in_train, in_validation, in_test in task.counts():
        assert in_train >= 30 and min(in_validation, in_test) >= 8


@pytest.mark.slow
def test_built_in_task_is_split_by_file(task):
    files = [{e.source.rpartition(":")[0] for e in part} for part in (task.train, task.validation, task.test)]
    assert not (files[0] & files[1] or files[0] & files[2] or files[1] & files[2])
    everything = [" ".join(e.text.split()) for e in task.train + task.validation + task.test]
    assert len(set(everything)) == len(everything)


@pytest.mark.slow
def test_built_in_task_does_not_reveal_the_label(task):
    names = re.compile("|".join(re.escape(name.strip("_")) for name in task.names), re.IGNORECASE)
    for example in task.train + task.validation + task.test:
        assert not names.search(example.text), example
        path = example.source.rpartition(":")[0].removesuffix(".py")
        for part in path.split("/")[1:]:
            assert part == "__init__" or not re.search(rf"(?<!\w){re.escape(part)}(?!\w)", example.text, re.IGNORECASE)
        # A line that begins so may still stand inside a string.
        assert not re.search(r"^\s+(import \w+|from [\w.]+ import \w+)$", example.text, re.M) or '"""' in example.text


def tiny_library(functions_per_file=16, packages=10, files=4):
    for p in range(packages):
        for f in range(files):
            yield (
                f"package{'abcdefghij'[p]}/part{f}.py",
                "import os\n"
                + "\n".join(
                    f'class C{i}:\n    @property\n    def method{i}(self):\n        """Says packagea."""\n'
                    f"        import sys; x = {p * 1000 + f * 100 + i}\n        from packagea import y\n"
                    f"        return PackageA.part{f}.y('in PACKAGEB', Part{f}, part{f}s)\n"
                    for i in range(functions_per_file)
                ),
            )


def test_functions_are_extracted_and_cleaned():
    splits = load_stdlib_task(files=list(tiny_library()))
    example = next(e for e in splits.train + splits.validation + splits.test if e.source == "packagea/part1.py:4")
    assert example.group == "packagea/part1.py"
    assert example.text == (
        "@property\ndef method0(self):\n    pass; x = 100\n    pass\n    return _._.y('in _', _, part1s)"
    )


def test_equal_functions_count_once_and_not_at_all_across_packages():
    library = dict(tiny_library())
    same = "def shared(a):\n    b = a\n    return b\n"
    twice = "def repeated(a):\n    c = a\n    return c\n"
    library["packagea/part0.py"] += same + twice
    library["packageb/part0.py"] += same
    library["packagea/part1.py"] += twice
    splits = load_stdlib_task(files=list(library.items()))
    everything = splits.train + splits.validation + splits.test
    assert not any("shared" in e.text for e in everything)
    assert sum("repeated" in e.text for e in everything) == 1


@pytest.mark.slow
def test_built_in_task_is_deterministic_and_seeded():
    library = list(tiny_library())
    assert load_stdlib_task(0, library) == load_stdlib_task(0, library)
    assert load_stdlib_task(0, library).test != load_stdlib_task(1, library).test


def test_a_stripped_python_is_an_error_with_advice():
    with pytest.raises(DataError, match=r"found 3 .*data\.path=FILE"):
        load_stdlib_task(files=list(tiny_library(packages=3)))


def test_files_are_split_close_to_the_wanted_fractions():
    parts = split_files({"a": 81, "b": 57, "c": 35, "d": 23, "e": 2}, "seed")
    assert set(parts.values()) == {"train", "validation", "test"}
    assert sum(n for f, n in {"a": 81, "b": 57, "c": 35, "d": 23, "e": 2}.items() if parts[f] == "train") > 198 / 2
