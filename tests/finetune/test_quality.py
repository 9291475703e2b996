"""Data care: duplicates, leaks, conflicts, label names, groups, shots, folds, unlabelled texts, corpus overlap."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from finetune.data import load_examples
from finetune.data_config import DataConfig
from finetune.examples import Example, Splits
from finetune.quality.duplicates import compare, conflicts
from finetune.quality.near import NearIndex
from finetune.quality.normal_form import normal_form, word_hashes, word_ngrams
from finetune.quality.overlap import overlap_with_corpus, pretraining_overlap, pretraining_sources
from finetune.quality.preparation import prepare
from finetune.quality.splitting import draw_shots, folds, split_validation
from finetune.quality.unlabelled import read_unlabelled
from mini_llm.corpus.config import SourceConfig
from mini_llm.engine.config import load_config
from mini_llm.engine.errors import ConfigError, DataError

NOUNS = ["film", "actor", "story", "camera", "scene", "ending", "music", "critic", "hero", "city", "river", "storm"]
ADJECTIVES = ["slow", "bright", "honest", "clumsy", "tender", "empty", "loud", "strange", "perfect", "quiet", "bitter"]
VERBS = ["shows", "leaves", "finds", "breaks", "follows", "loses", "answers", "fears", "paints", "forgets", "carries"]


def sentence(rng):
    word = rng.choice
    return f"the {word(ADJECTIVES)} {word(NOUNS)} {word(VERBS)} a {word(ADJECTIVES)} {word(NOUNS)} in the {word(NOUNS)}"


def texts_of(rng, count):
    """Distinct texts of 30 to 70 words from a small grammar."""
    return [". ".join(sentence(rng) for _ in range(rng.randint(3, 7))) + f" by author{i}." for i in range(count)]


def changed(rng, text):
    """`text` with one to three words replaced, removed or added."""
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(words))
        words[place : place + rng.randint(0, 1)] = rng.choice([[rng.choice(NOUNS)], [], ["really", "very"]])
    return " ".join(words)


def examples(texts, labels=(0, 1), prefix="row"):
    return [Example(text, labels[i % len(labels)], f"{prefix} {i}") for i, text in enumerate(texts)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(texts, labels=("a", "b")):
    return [{"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(texts)]


def words(rng, count):
    """A text of random words: no two of these are near duplicates."""
    return " ".join(rng.choice(NOUNS) + str(rng.randrange(1000)) for _ in range(count))


# Duplicates


@pytest.fixture(scope="module")
def planted():
    rng = random.Random(0)
    texts = texts_of(rng, 2000)
    originals = rng.sample(texts, 400)
    exact = [text.upper() if i % 2 else text.replace(" ", "  ") for i, text in enumerate(originals[:200])]
    return texts, exact, originals[200:], [changed(rng, text) for text in originals[200:]]


@pytest.mark.slow
def test_planted_duplicates_are_found(planted):
    texts, exact, originals, near = planted
    found = compare({"train": examples(texts), "test": examples([*exact, *near])})
    leaks = {leak.other.text: leak for leak in found.leaks()}
    assert sum(leaks[text].similarity == 1 for text in exact if text in leaks) >= 0.99 * len(exact)
    assert found.shared("test", "train")[0] >= 0.99 * len(exact)
    hits = [leaks[copy] for copy in near if copy in leaks]
    assert len(hits) >= 0.95 * len(near)
    origin = dict(zip(near, originals, strict=True))
    assert all(texts[leak.row] == origin[leak.other.text] for leak in hits)


def test_all_words_of_an_ngram_reach_the_bits_that_are_compared():
    rng = random.Random(14)
    pairs = [word_ngrams(word_hashes(f"{a} {b}"), 2)[0] for a in ADJECTIVES for b in NOUNS]
    for shift in (0, 32):
        assert len({int(value) >> shift & 0xFFFFFFFF for value in pairs}) == len(pairs)
    grams = [set(word_ngrams(word_hashes(text), 2).tolist()) for text in texts_of(rng, 30)]
    assert grams[0] != grams[1] and word_ngrams(word_hashes("one"), 2).size == 0


@pytest.mark.slow
def test_clean_text_raises_no_alarm(planted):
    found = compare({"train": examples(planted[0])})
    assert found.coverage == "all" and found.duplicates("train") == (0, 0)


def test_a_short_text_or_a_cut_one_is_no_near_duplicate():
    index = NearIndex()
    assert not index.search("the film is good", 0) and not index.search("the film is not good", 1)
    text = words(random.Random(1), 40)
    index.search(text, 2)
    assert index.search(" ".join(text.split()[:30]))[0][0] == 2
    assert not index.search(" ".join(text.split()[:15]))


def test_similar_texts_of_any_length_are_near_duplicates():
    rng = random.Random(15)
    for count, replaced, expected in ((15, 2, True), (15, 6, False), (300, 30, True), (300, 120, False)):
        text = words(rng, count).split()
        other = list(text)
        for place in range(0, count, count // replaced):
            other[place] = "changed"
        index = NearIndex()
        index.search(" ".join(text), 0)
        assert bool(index.search(" ".join(other))) == expected, (count, replaced)


def test_a_template_with_many_rows_stays_cheap():
    index = NearIndex()
    template = words(random.Random(2), 30)
    found = [index.search(f"{template} {i}", i) for i in range(300)]
    assert all(len(pairs) == 8 for pairs in found[8:]) and len(index._texts) == 8


def test_scripts_without_spaces_have_words():
    text = "\u6211\u6628\u5929\u770b\u4e86\u4e00\u90e8\u975e\u5e38\u597d\u7684\u7535\u5f71\u6545\u4e8b"
    assert len(word_hashes(text)) == len(text)
    index = NearIndex()
    index.search(text, 0)
    assert index.search(text + "\u3002\u5f88")[0][0] == 0


def test_equal_texts_ignore_case_space_and_unicode_form():
    assert normal_form("Cafe\u0301  ONE\n") == normal_form("caf\u00e9 one") == "caf\u00e9 one"
    assert normal_form("STRASSE") == normal_form("stra\u00dfe")
    assert normal_form("a b") != normal_form("ab")


def test_near_duplicates_can_be_switched_off_and_are_limited(planted, monkeypatch):
    texts, _, _, near = planted
    parts = {"train": examples(texts[:300] + near), "test": examples(near)}
    assert compare(parts, near=False).coverage == "none" and not compare(parts, near=False).near
    monkeypatch.setattr("finetune.quality.duplicates.ALL_TEXTS", 100)
    found = compare(parts)
    assert found.coverage == "across" and len(found.leaks()) >= len(near)
    monkeypatch.setattr("finetune.quality.duplicates.ACROSS_CHARACTERS", 100)
    assert compare(parts).coverage == "none"
    assert compare(parts, near=True).coverage == "all"


def test_conflicting_labels_are_shown_with_their_rows(tmp_path):
    rng = random.Random(3)
    rows = rows_of([words(rng, 12) for _ in range(30)])
    rows += [{"text": rows[4]["text"].upper(), "label": "b"}]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    splits = load_examples(DataConfig(path=path))
    note = next(note for note in splits.notes if "different labels" in note)
    assert "rows: 1, such as" in note and f"{path} row 5: a" in note and f"{path} row 31: b" in note
    assert splits.findings["conflicts"] == 1
    assert conflicts(examples(["x", "y"])) == []


# Leaks


@pytest.fixture
def leaking(tmp_path):
    """(path, test path): 3 training rows are test rows, 2 more nearly; one row is in the test data twice."""
    rng = random.Random(4)
    texts = [words(rng, 25) for _ in range(60)]
    test = [words(rng, 25) for _ in range(10)]
    texts[5], texts[17], texts[23] = test[1], test[2].upper(), test[3]
    texts[30], texts[41] = f"{test[4]} indeed", f"well {test[5]}"
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate([*test, test[1]])]
    return write_jsonl(tmp_path / "train.jsonl", rows_of(texts)), write_jsonl(tmp_path / "held.jsonl", rows)


def test_leaking_rows_are_dropped_from_training_and_counted(leaking):
    path, test = leaking
    splits = load_examples(DataConfig(path=path, test=test))
    rows = {int(e.source.rpartition(" ")[2]) for e in splits.train + splits.validation}
    assert rows == set(range(1, 61)) - {6, 18, 24, 31, 42}
    assert splits.findings["leaks"]["test"] == {"exact": 3, "near": 2}
    assert splits.findings["test_in_train"] == {"exact": 4, "near": 2}
    note = next(note for note in splits.notes if "dropped from training" in note)
    assert "3 training texts" in note and f"{path} row 6 and {test} row 2" in note
    assert len(splits.test) == 11


def test_leaks_can_be_kept(leaking):
    path, test = leaking
    splits = load_examples(DataConfig(path=path, test=test, leaks="keep"))
    assert len(splits.train) + len(splits.validation) == 60
    assert any("scores may be too high" in note for note in splits.notes)
    only_exact = load_examples(DataConfig(path=path, test=test, near_duplicates=False))
    assert len(only_exact.train) + len(only_exact.validation) == 57
    assert any("not sought at all" in note for note in only_exact.notes)


def test_rows_of_a_given_validation_file_leave_training(leaking):
    path, held = leaking
    splits = load_examples(DataConfig(path=path, validation=held))
    assert len(splits.train) == 55 and len(splits.validation) == 11


def test_near_duplicates_do_not_straddle_the_validation_split():
    rng = random.Random(5)
    base = [words(rng, 25) for _ in range(60)]
    splits = prepare(Splits(["a", "b"], examples([*base, *(f"{t} again" for t in base)]), []), DataConfig(seed=1))
    assert len(splits.train) + len(splits.validation) == 120
    assert not compare({"train": splits.train, "validation": splits.validation}).leaks()


def test_templates_are_not_dropped_unless_asked():
    rng = random.Random(6)
    template = words(rng, 25)
    train = examples([f"{template} {i}" for i in range(40)])
    held = examples([f"{template} x{i}" for i in range(6)])
    splits = prepare(Splits(["a", "b"], train, held), DataConfig())
    assert len(splits.train) == 40 and any("templates" in note for note in splits.notes)
    with pytest.raises(DataError, match="every training text of these labels"):
        prepare(Splits(["a", "b"], train, held), DataConfig(near_duplicates=True))


def test_validation_data_equal_to_training_are_refused(tmp_path):
    rows = rows_of([f"text {i}" for i in range(20)])
    path, copy = write_jsonl(tmp_path / "t.jsonl", rows), write_jsonl(tmp_path / "v.jsonl", rows[::-1])
    with pytest.raises(DataError, match=r"v\.jsonl\) hold the same texts.*data\.leaks=keep"):
        load_examples(DataConfig(path=path, validation=copy))
    splits = load_examples(DataConfig(path=path, validation=copy, leaks="keep"))
    assert any("mean nothing" in note for note in splits.notes)
    other = write_jsonl(tmp_path / "x.jsonl", rows_of([f"other {i}" for i in range(6)]))
    splits = load_examples(
        DataConfig(
            path=path,
            validation=other,
            test=write_jsonl(tmp_path / "y.jsonl", rows_of([f"other {i}" for i in range(6)])),
        )
    )
    assert any("same texts as the validation data" in note for note in splits.notes)


def test_the_report_counts_classes_and_lengths(leaking):
    splits = load_examples(DataConfig(path=leaking[0], test=leaking[1]))
    assert splits.notes[0].startswith("2 classes (training / validation / test): a: ")
    assert any("characters of a training text: median" in note for note in splits.notes)
    assert sum(sum(counts) for counts in splits.findings["classes"].values()) == 55 + 11
    assert json.dumps(splits.findings)


# Groups, shots, folds


def test_groups_stay_on_one_side_and_labels_keep_their_shares():
    rng = random.Random(7)
    rows = [Example(f"text {i}", int(rng.random() < 0.3), "", f"author {rng.randrange(60)}") for i in range(600)]
    train, validation = split_validation(rows, 0.2, seed=0)
    assert not {e.group for e in train} & {e.group for e in validation}
    assert len(train) + len(validation) == 600
    for label in (0, 1):
        total = sum(e.label == label for e in rows)
        assert abs(sum(e.label == label for e in validation) / total - 0.2) < 0.05
    assert set(split_validation(rng.sample(rows, 600), 0.2, seed=0)[1]) == set(validation)


def test_group_by_column_and_by_file(tmp_path):
    rows = [{"text": f"t {i}", "label": "ab"[i % 2], "who": i % 12} for i in range(120)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    splits = load_examples(DataConfig(path=path, group="who"))
    sides = [{int(e.source.rpartition(" ")[2]) % 12 for e in part} for part in (splits.train, splits.validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    for i in range(10):
        write_jsonl(tmp_path / "folder" / f"part{i}.jsonl", rows_of([f"f{i} {j}" for j in range(9)])) if (
            tmp_path / "folder"
        ).mkdir(exist_ok=True) is None else None
    splits = load_examples(DataConfig(path=str(tmp_path / "folder"), group="file"))
    files = [{e.source.rpartition(" row ")[0] for e in part} for part in (splits.train, splits.validation)]
    assert files[1] and not files[0] & files[1] and len(files[0] | files[1]) == 10


def test_a_text_of_several_groups_leaves_training_if_it_is_validated():
    rows = [Example(f"text {i % 40}", i % 2, f"{i}", f"author {i % 30}") for i in range(240)]
    splits = prepare(Splits(["a", "b"], rows, []), DataConfig(validation_fraction=0.2))
    assert splits.validation and not {e.text for e in splits.train} & {e.text for e in splits.validation}
    assert len(splits.train) + len(splits.validation) < 240
    assert any("stand in the validation data" in note and "dropped" in note for note in splits.notes)


def test_a_missing_group_column_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(["x", "y", "z", "w"]))
    with pytest.raises(DataError, match="no column 'who'"):
        load_examples(DataConfig(path=path, group="who"))


def test_shots_are_drawn_for_training_and_as_many_for_validation(tmp_path):
    rng = random.Random(8)
    rows = rows_of([words(rng, 12) for _ in range(400)])
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    splits = load_examples(DataConfig(path=path, shots=16))
    assert Counter(e.label for e in splits.train) == Counter(e.label for e in splits.validation) == {0: 16, 1: 16}
    assert not {e.text for e in splits.train} & {e.text for e in splits.validation}
    again = load_examples(DataConfig(path=path, shots=16, seed=1))
    assert {e.text for e in again.train} != {e.text for e in splits.train}
    held = write_jsonl(tmp_path / "v.jsonl", rows_of([words(rng, 12) for _ in range(50)]))
    assert len(load_examples(DataConfig(path=path, shots=4, validation=held)).validation) == 50


def test_training_comes_first_where_shots_leave_few_rows():
    rows = examples([words(random.Random(i), 12) for i in range(17)], labels=(0, 0, 1))
    train, rest = draw_shots(rows, 8, seed=0)
    assert Counter(e.label for e in train) == {0: 8, 1: 5} and Counter(e.label for e in rest) == {0: 4}
    with pytest.raises(DataError, match="beyond its shots"):
        prepare(Splits(["a", "b"], rows, []), DataConfig(shots=50))


def test_the_rest_shares_no_group_with_the_shots():
    rows = [Example(f"text {i}", i % 2, "", f"author {i % 20}") for i in range(200)]
    train, rest = draw_shots(rows, 3, seed=0)
    assert Counter(e.label for e in train) == {0: 3, 1: 3}
    assert len(rest) == 180 and not {e.group for e in train} & {e.group for e in rest}


@pytest.mark.parametrize("seed", range(3))
def test_folds_hold_equal_shares_of_rare_labels(seed):
    rows = [Example(f"text {i}", 0 if i % 7 else 1 + i // 7 % 2, "") for i in range(420)]
    for part in folds(rows, 5, seed):
        assert Counter(rows[row].label for row in part) == {0: 72, 1: 6, 2: 6}


def test_folds_are_stratified_grouped_and_complete():
    rng = random.Random(9)
    rows = [Example(f"text {i % 180}", int(i % 180 < 40), f"{i}") for i in range(200)]
    parts = folds(rows, 5, seed=0)
    assert sorted(row for part in parts for row in part) == list(range(200))
    home = {}
    for number, part in enumerate(parts):
        counts = Counter(rows[row].label for row in part)
        assert 11 <= counts[1] <= 13 and 27 <= counts[0] <= 29
        for row in part:
            assert home.setdefault(rows[row].text, number) == number
    shuffled = rng.sample(rows, 200)
    again = [{shuffled[row].text for row in part} for part in folds(shuffled, 5, seed=0)]
    assert again == [{rows[row].text for row in part} for part in parts]
    grouped = [row._replace(group=str(i % 23)) for i, row in enumerate(rows)]
    for part in folds(grouped, 4):
        inside = {grouped[row].group for row in part}
        assert len(part) == sum(row.group in inside for row in grouped)
    with pytest.raises(ValueError, match="at least 2"):
        folds(rows, 1)


# Unlabelled texts


def test_unlabelled_texts_leave_out_what_is_scored(tmp_path, leaking):
    path, test = leaking
    scored = [json.loads(line)["text"] for line in Path(test).read_text().splitlines()]
    rng = random.Random(10)
    fresh = [words(rng, 20) for _ in range(30)]
    table = write_jsonl(
        tmp_path / "more.jsonl", [{"text": t} for t in [*fresh, fresh[0], scored[6], f"oh {scored[7]}"]]
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("a first line\n\na second line\n")
    splits = load_examples(DataConfig(path=path, test=test, unlabelled=[table, str(lines)]))
    assert splits.unlabelled == [*fresh, "a first line", "a second line"]
    assert splits.findings["unlabelled"] == {
        "read": 36, "different": 33, "equal_to_scored": 1, "near_to_scored": 1, "used": 32,
    }  # fmt: skip
    assert any(note.startswith("unlabelled: 32 of 36 texts") for note in splits.notes)
    config = DataConfig(path=path, test=test, unlabelled=table)
    few = read_unlabelled(config, splits, limit=10)
    assert len(few) == 10 and few == [text for text in fresh if text in few]
    assert few != read_unlabelled(config.model_copy(update={"seed": 1}), splits, limit=10)


def test_unlabelled_folders_of_text_files_and_missing_columns(tmp_path, leaking):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"text {i}\nsecond line\n")
    config = DataConfig(path=leaking[0], unlabelled=str(folder))
    assert load_examples(config).unlabelled == [f"text {i}\nsecond line\n" for i in range(3)]
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"body": "x"}])
    with pytest.raises(DataError, match="no column 'text'"):
        load_examples(DataConfig(path=leaking[0], unlabelled=[bad]))


# Overlap with the pretraining corpus


def test_overlap_with_the_pretraining_corpus_is_counted(tmp_path):
    rng = random.Random(11)
    texts = [words(rng, 30) for _ in range(20)]
    corpus = [words(rng, 200) for _ in range(5)]
    corpus[1] += " " + texts[3].upper()
    corpus[4] = texts[7] + "\n" + corpus[4] + f" {' '.join(texts[9].split()[:15])}"
    (tmp_path / "c.txt").write_text("\n".join(corpus))
    found = overlap_with_corpus([*texts, "too short"], [SourceConfig(path=str(tmp_path / "c.txt"))])
    assert (found.texts, found.shared, found.short, found.complete) == (21, 2, 1, True)
    write_jsonl(tmp_path / "d.jsonl", [{"text": text} for text in corpus])
    part = overlap_with_corpus(texts, [SourceConfig(path=str(tmp_path / "d.jsonl"))], most_characters=2000)
    assert part.shared == 1 and not part.complete and "the first" in str(part)


def test_a_text_across_two_parts_of_a_long_document_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.quality.overlap.PART", 1000)
    text = words(random.Random(12), 12)
    (tmp_path / "c.txt").write_text("x " * 473 + text + " y" * 900)
    assert overlap_with_corpus([text], [SourceConfig(path=str(tmp_path / "c.txt"))]).shared == 1


def test_the_corpus_is_read_from_the_run_of_the_model(tmp_path):
    text = words(random.Random(13), 20)
    (tmp_path / "c.txt").write_text(text)
    run = tmp_path / "runs" / "gpt"
    (run / "model").mkdir(parents=True)
    assert pretraining_sources(run) is None
    (run / "config.yaml").write_text(f"corpus:\n  sources: [{{path: {tmp_path / 'c.txt'}}}]\n")
    assert [source.path for source in pretraining_sources(run / "model")] == [str(tmp_path / "c.txt")]
    splits = Splits(["a", "b"], [], examples([text, "another text"]))
    (note,) = pretraining_overlap(run, splits)
    assert note.startswith("1 of 2 scored texts") and splits.findings["in_pretraining"]["shared"] == 1
    (tmp_path / "c.txt").unlink()
    assert "not checked" in pretraining_overlap(run, splits)[0]


# Settings


def test_settings_are_checked():
    assert load_config(DataConfig, overrides=["near_duplicates=off"]).near_duplicates is False
    assert load_config(DataConfig, overrides=["unlabelled=a.txt"]).unlabelled == ["a.txt"]
    with pytest.raises(ConfigError, match="unknown encoding 'utf-99'"):
        load_config(DataConfig, overrides=["encoding=utf-99"])
    with pytest.raises(ConfigError, match="own splits"):
        load_config(DataConfig, overrides=["group=who"])
