"""Bad input of every task: an error that names the file, the row and the fix, or a documented behaviour."""

import json

import pytest

from finetune.data import load_examples
from finetune.data_config import DataConfig
from finetune.tasks.metrics.entities import entities
from finetune.tasks.reading import read_parts
from finetune.tasks.registry import TASKS, check_family, detect
from finetune.tasks.task import Parts, Row
from mini_llm.engine.config import build_config
from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from mini_llm.model import Seq2SeqLM, save_model
from tests.families import make_config
from tests.finetune.tasks.task_data import SETTINGS, rows, write

CONTEXT = "Anna lives in Paris ."


def read(task, path, **data):
    return read_parts(TASKS[task](DataConfig(path=str(path), **{**SETTINGS[task], **data})))


def question(**changes):
    return {"context": CONTEXT, "question": "where?", "answers": [{"text": "Paris", "answer_start": 14}], **changes}


BAD = [
    ("multi_label", {"text": "a", "label": None}, r"'label' is empty in 1 of 41 rows: .*row 41"),
    ("multi_label", {"text": " ", "label": ["x"]}, "'text' is empty in 1 of 41 rows"),
    ("multi_label", {"text": "a", "label": ["x", None]}, "row 41: 'label': one of the labels .* is null or empty"),
    ("multi_label", {"text": "a", "label": [["x"]]}, "row 41: 'label' holds list"),
    ("multi_label", {"text": "a", "label": "[x"}, "row 41: 'label': .* is not a JSON list"),
    ("regression", {"text": "a", "label": "three"}, "row 41: 'label': 'three' is not a finite number"),
    ("regression", {"text": "a", "label": True}, "'True' is not a finite number such as 3.5. For classes"),
    ("regression", {"text": "a", "label": "inf"}, "'inf' is not a finite number"),
    ("regression", {"text": "a", "label": [1]}, r"'\[1\]' is not a finite number"),
    ("regression", {"text": "a", "label": None}, "'label' is empty"),
    ("regression", {"text": "a", "label": "3,5"}, "'3,5' is not a finite number such as 3.5"),
    ("regression", {"text": "a", "label": -1e300}, "row 41: 'label': 1e.300 is too large for the weights of a model"),
    ("multi_label", {"text": "a", "label": ["x", "y\0"]}, r"the label 'y\\x00' holds the control character U\+0000"),
    ("ordinal", {"text": "a", "label": "a\nb"}, r"row 41: the label 'a\\nb' holds the control character U\+000A"),
    ("pairs", {"a": "x", "b": "y", "label": "word " * 200}, r"row 41: the label 'word .*\.\.\.' has 999 characters"),
    ("pairs", {"a": "x", "b": "y", "label": "caf\ufffd"}, r"row 41: the label 'caf\\ufffd' holds U\+FFFD"),
    ("tokens", {"tokens": ["a"], "tags": ["B-\ufffd"]}, r"row 41: the label 'B-\\ufffd' holds U\+FFFD"),
    ("tokens", {"tokens": "a b", "tags": "O O"}, "not a list of words. Tables that hold lists are JSONL and Parquet"),
    ("tokens", {"tokens": ["a"], "tags": float("nan")}, "'tags' is empty in 1 of 41 rows"),
    ("questions", question(answers=float("nan")), "'answers' is empty in 1 of 41 rows"),
    ("questions", question(answers='[{"text": "Paris"}]'), "which JSONL, Parquet and SQuAD's JSON hold"),
    ("ordinal", {"text": "a", "label": "huge"}, "data.label_order lacks the labels huge"),
    ("ordinal", {"text": "a", "label": None}, "'label' is empty"),
    ("pairs", {"a": "x", "b": None, "label": "same"}, "'b' is empty in 1 of 41 rows"),
    ("pairs", {"a": "x", "b": ["y"], "label": "same"}, "row 41: 'b' holds a list, not text"),
    ("pairs", {"a": "x", "b": "y", "label": ["same"]}, "a label must be one string or number"),
    ("tokens", {"tokens": ["a", "b"], "tags": ["O"]}, "row 41: 2 words, but 1 tags"),
    ("tokens", {"tokens": ["a"], "tags": ["LOC"]}, "row 41: the tag 'LOC' of word 1 .* is not BIO"),
    ("tokens", {"tokens": ["a"], "tags": ["E-LOC"]}, "in BIOES, E- is I-"),
    ("tokens", {"tokens": ["a", "b"], "tags": ["O", "I-LOC"]}, "word 2 .'b'. is I-LOC after O, .*data.broken_tags=rep"),
    ("tokens", {"tokens": ["a", "b"], "tags": ["B-PER", "I-LOC"]}, "is I-LOC after B-PER"),
    ("tokens", {"tokens": ["I"], "tags": ["I-LOC"]}, "is I-LOC after the beginning"),
    ("tokens", {"tokens": "a b", "tags": ["O"]}, "'tokens' holds 'a b', not a list"),
    ("tokens", {"tokens": ["a", " "], "tags": ["O", "O"]}, "element 1 is ' ', not a word"),
    ("tokens", {"tokens": ["a"], "tags": [3]}, "'tags': element 0 is '3', not a word"),
    ("tokens", {"tokens": [], "tags": []}, "'tokens' is empty in 1 of 41 rows"),
    ("questions", question(answers=[{"text": "Paris", "answer_start": 15}]), "the text has 'aris '.*not the answer"),
    ("questions", question(answers=[{"text": "Paris", "answer_start": 99}]), "at character 99 is outside the text"),
    ("questions", question(answers=[{"text": "Paris", "answer_start": -7}]), "at character -7 is outside the text"),
    ("questions", question(answers=[{"text": "Paris", "answer_start": "14"}]), "the number of its first character"),
    ("questions", question(answers=[{"text": "", "answer_start": 0}]), "an answer needs a text"),
    ("questions", question(answers={"text": ["a"], "answer_start": [0, 1]}), "1 texts, but 2 values of answer_start"),
    ("questions", question(answers="Paris"), "'Paris' is not a list of answers"),
    ("questions", question(answers=None), "'answers' is empty"),
    ("questions", question(question=""), "'question' is empty"),
]


@pytest.mark.parametrize(("task", "row", "message"), BAD)
def test_a_bad_row_is_named(task, row, message, tmp_path):
    path = write(tmp_path / "bad.jsonl", [*rows(task, 40), row])
    with pytest.raises(DataError, match=message) as error:
        read(task, path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("task", TASKS)
def test_empty_rows_can_be_skipped(task, tmp_path):
    good = rows(task, 40)
    path = write(tmp_path / "bad.jsonl", [*good, dict.fromkeys(good[0])])
    parts = read(task, path, on_null="skip")
    assert any("1 rows without" in note for note in parts.notes)
    assert len(parts.train) + len(parts.validation) == 40


@pytest.mark.parametrize("task", TASKS)
def test_files_of_a_folder_are_splits_by_their_names(task, tmp_path):
    sizes = {"train": 40, "dev": 8, "test": 9}
    for seed, (name, count) in enumerate(sizes.items()):
        write(tmp_path / f"{name}.jsonl", rows(task, count, seed))
    parts = read(task, tmp_path)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == list(sizes.values())
    assert "train: train.jsonl; validation: dev.jsonl; test: test.jsonl" in parts.notes[0]
    # A test file without labels is not used.
    label = {"tokens": "tags", "questions": "answers"}.get(task, "label")
    write(tmp_path / "test.jsonl", [{**row, label: None} for row in rows(task, 9, 2)])
    parts = read(task, tmp_path)
    assert parts.test is None and any(f"not used: it has no labels in '{label}'" in note for note in parts.notes)


@pytest.mark.parametrize("suffix", [".txt", ".conll"])
def test_conll_files_of_a_folder_are_splits_too(suffix, tmp_path):
    for name, count in {"train": 20, "valid": 3, "test": 4}.items():
        sentences = "\n\n".join(f"{name}{i} B-PER\nsaw O" for i in range(count))
        (tmp_path / f"{name}{suffix}").write_text(sentences)
    parts = read("tokens", tmp_path)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [20, 3, 4]
    assert detect(DataConfig(path=str(tmp_path))) == ("tokens" if suffix == ".conll" else "single_label")


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_column_is_named(task, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(DataError, match=r"no column '.*'; the columns are: 'other'.*: data\.\w+=COLUMN"):
        read(task, tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("multi_label", {"text": "a", "label": ["ugly"]}, "'ugly' in row 1.*Known labels: bad, good"),
        ("ordinal", {"text": "a", "label": "huge"}, "'huge' in row 1"),
        ("pairs", {"a": "x", "b": "y", "label": "Same"}, "differs from 'same' only in case"),
        ("tokens", {"tokens": ["a"], "tags": ["B-GPE"]}, "'B-GPE' in row 1"),
    ],
)
def test_labels_that_training_lacks_are_named(task, row, message, tmp_path):
    train = write(tmp_path / "train.jsonl", rows(task, 40))
    test = write(tmp_path / "test.jsonl", [row])
    with pytest.raises(DataError, match=message) as error:
        read(task, train, test=str(test))
    assert f"{test}: labels missing from the training data" in str(error.value)


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("multi_label", [{"text": f"t{i}", "label": ["x"]} for i in range(20)], r"have the same labels \(x\)"),
        ("multi_label", [{"text": f"t{i}", "label": []} for i in range(20)], r"have the same labels \(none\)"),
        ("multi_label", [{"text": f"t{i}", "label": [f"l{i}"]} for i in range(80)], "has 80 different labels in 80"),
        ("regression", [{"text": f"t{i}", "label": 3} for i in range(20)], "have the number 3"),
        ("ordinal", [{"text": f"t{i}", "label": "mid"} for i in range(20)], "all 20 rows have the label 'mid'"),
        ("ordinal", [{"text": f"t{i}", "label": i} for i in range(80)], "has 80 different values in 80 rows"),
        ("pairs", [{"a": "x", "b": f"{i}", "label": 1} for i in range(20)], "all 20 rows have the label '1'"),
        ("tokens", [{"tokens": ["a"], "tags": ["O"]}] * 20, "all words have the tag O"),
        ("questions", [question(answers=[])] * 20, "no question has an answer"),
    ],
)
def test_data_with_nothing_to_learn_are_refused(task, content, message, tmp_path):
    path = write(tmp_path / "bad.jsonl", content)
    with pytest.raises(DataError, match=message):
        read(task, path, label_order=[])


def test_equal_label_sets_left_in_training_have_a_baseline_without_a_model():
    task = TASKS["multi_label"](DataConfig(path="x"), ["a", "b"])
    parts = Parts([Row("row 1", "one text", ["a"])], [Row("row 2", "another text", ["b"])], None)
    majority, tfidf = task.baselines(parts, 0)
    assert [found.tolist() for found in tfidf.predictions] == [found.tolist() for found in majority.predictions]


def test_one_row_is_called_the_only_one(tmp_path):
    for task, message in {"regression": "the only row has the number", "pairs": "the only row has the label"}.items():
        with pytest.raises(DataError, match=message):
            read(task, write(tmp_path / "one.jsonl", rows(task, 1)))


def test_one_group_cannot_be_divided(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**row, "author": "x"} for row in rows("ordinal", 40)])
    with pytest.raises(DataError, match=r"all rows are of one group \(data.group=author\)"):
        read("ordinal", path, group="author")
    with pytest.raises(DataError, match=r"all rows are of one group \(data.group=author\)"):
        load_examples(DataConfig(path=str(path), group="author"))


def test_one_column_cannot_be_two(tmp_path):
    path = write(tmp_path / "a.jsonl", rows("pairs", 40))
    with pytest.raises(ConfigError, match=r"data.text and data.text_pair both name the column 'a'"):
        read("pairs", path, text_pair="a")
    with pytest.raises(ConfigError, match=r"data.text and data.label both name the column 'a'"):
        load_examples(DataConfig(path=str(path), text="a", label="a"))


def test_the_order_of_labels_names_each_once_and_says_which_are_unused(tmp_path):
    path = write(tmp_path / "a.jsonl", rows("ordinal", 40))
    with pytest.raises(ConfigError, match=r"label_order.*'low' stands twice"):
        build_config(DataConfig, {"path": str(path), "label_order": ["low", "mid", "low"]}, "here")
    parts = read("ordinal", path, label_order=["low", "mid", "high", "never"])
    assert "data.label_order: no training row has the labels never" in parts.notes


def test_a_label_that_only_scored_rows_have_after_leaks_were_dropped_is_named(tmp_path):
    content = rows("pairs", 40)
    test = write(tmp_path / "test.jsonl", [row for row in content if row["label"] == "same"])
    path = write(tmp_path / "train.jsonl", content)
    with pytest.raises(DataError, match=r"every training row with these labels stands in .* same. Score other rows"):
        read("pairs", path, test=str(test))
    assert len(read("pairs", path, test=str(test), leaks="keep").train) > 30


@pytest.mark.parametrize("task", ["pairs", "questions", "tokens"])
def test_damaged_texts_are_counted_and_an_encoding_is_suggested(task, tmp_path):
    row = json.dumps(rows(task, 1)[0], ensure_ascii=False)
    row = row.replace("works", "caf\u00e9e").replace("Acme", "caf\u00e9")  # as long, so that answers stay in place
    path = write(tmp_path / "a.jsonl", rows(task, 40, 1))
    path.write_bytes(path.read_bytes() + row.encode("cp1252"))
    (note,) = [note for note in read(task, path).notes if "U+FFFD" in note]
    assert note.startswith("1 texts hold U+FFFD") and "a.jsonl row 41" in note and "data.encoding=cp1252" in note
    assert not any("U+FFFD" in note for note in read(task, path, encoding="cp1252").notes)


def test_equal_numbers_left_in_training_are_not_divided_by_zero():
    task = TASKS["regression"](DataConfig(path="x"))
    task.standardize([Row("row 1", "a", 5.0), Row("row 2", "b", 5.0)], has_bias=True)
    assert (task.mean, task.scale) == (5.0, 1.0) and task.encoded(7.0) == 2.0


def test_labels_may_be_text_in_a_table(tmp_path):
    lines = ["text,label", *(f'text {i},"{["x; y", "y", "[]", "x"][i % 4]}"' for i in range(40))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    parts = read("multi_label", tmp_path / "a.csv")
    assert {frozenset(row.target) for row in parts.train} == {frozenset(t) for t in ({"x", "y"}, {"y"}, (), {"x"})}


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_conll_files_are_read(separator, tmp_path):
    lines = ["-DOCSTART- -X- O O", "", "# sent_id = 1", "Anna NNP B-PER", "saw VBD O", "", "", "# NN O", "Corp X B-ORG"]
    (tmp_path / "a.conll").write_text("\n".join(line.replace(" ", separator) for line in lines) + "\n\nx y O\n")
    parts = read("tokens", tmp_path / "a.conll")
    found = {row.place: row for row in (*parts.train, *parts.validation)}
    assert {place.rpartition(" ")[2]: row.text for place, row in found.items()} == {
        "4": "Anna saw",
        "8": "# Corp",
        "11": "x",
    }
    assert all(row.text[a:b] in row.text.split() for row in found.values() for a, b in row.words)


def test_a_conll_line_without_tag_is_named(tmp_path):
    (tmp_path / "a.conll").write_text("Anna B-PER\nsaw\n")
    with pytest.raises(DataError, match=r"a.conll: line 2: 'saw' has no tag"):
        read("tokens", tmp_path / "a.conll")


def test_broken_tags_are_repaired_as_conlleval_reads_them(tmp_path):
    (tmp_path / "a.conll").write_text("\n\n".join(f"Anna I-PER\nBob{i} I-PER\nsaw O\nParis I-LOC\n" for i in range(9)))
    parts = read("tokens", tmp_path / "a.conll", broken_tags="repair")
    assert parts.train[0].target == ["B-PER", "I-PER", "O", "B-LOC"]
    assert [e.kind for e in entities(parts.train[0].target)] == ["PER", "LOC"]


def squad(tmp_path, **paragraph):
    qa = {"id": "7", "question": "where?", "answers": [{"text": "Paris", "answer_start": 14}]}
    empty = {"id": "8", "question": "why?", "answers": [], "plausible_answers": [], "is_impossible": True}
    content = [
        {"title": str(i), "paragraphs": [{"context": f"{CONTEXT} {i}", "qas": [qa, empty], **paragraph}]}
        for i in range(9)
    ]
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": content}))
    return path


def test_squad_files_are_read(tmp_path):
    parts = read("questions", squad(tmp_path))
    assert len(parts.train) + len(parts.validation) == 18
    assert "9 of 18 questions have no answer" in parts.notes
    # Questions about one text stay on one side.
    assert not {row.text for row in parts.train} & {row.text for row in parts.validation}
    assert {row.target[0].text for row in parts.train if row.target} == {"Paris"}


def test_squad_files_may_have_another_encoding(tmp_path):
    path = squad(tmp_path)
    text = path.read_text().replace("where?", "caf\u00e9?")
    path.write_bytes(text.encode("cp1252"))
    assert {row.pair for row in read("questions", path, encoding="cp1252").train} == {"caf\u00e9?", "why?"}
    assert any("data.encoding=cp1252" in note for note in read("questions", path).notes)


def test_a_damaged_squad_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"'qas' of article 1, paragraph 1 is not a list. SQuAD's format"):
        read("questions", squad(tmp_path, qas=None))
    path = squad(tmp_path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(DataError, match="not a JSON file"):
        read("questions", path)


def test_training_rows_that_are_scored_are_dropped(tmp_path):
    content = rows("pairs", 60)
    test = write(tmp_path / "test.jsonl", content[:5])
    parts = read("pairs", write(tmp_path / "train.jsonl", content), test=str(test))
    assert len(parts.train) + len(parts.validation) == 55 and "5 training rows dropped" in " ".join(parts.notes)


def test_a_family_without_the_class_is_refused(tmp_path):
    save_model(Seq2SeqLM(make_config("t5", "seq2seq", 0)), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"a t5 model, for which there is no model of task=tokens\. Use one of bert"
    ):
        check_family(tmp_path, TASKS["tokens"](DataConfig(path="x")))
    check_family(tmp_path, TASKS["pairs"](DataConfig(path="x")))
