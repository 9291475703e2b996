"""A folder of pairs: files named train, validation and test are the parts of these names."""

from pathlib import Path

import pytest

from mini_llm.corpus.documents import iter_documents
from mini_llm.engine.config import load_config
from pretrain.config import PretrainConfig
from pretrain.pairs import load_pairs, training_text


def folder_of_pairs(place: Path, **parts: str) -> PretrainConfig:
    place.mkdir()
    for part, name in parts.items():
        lines = [f"{part} {i},{'' if part == 'unlabelled' else f'out {i}'}" for i in range(4)]
        (place / name).write_text("source,target\n" + "\n".join(lines) + "\n")
    return load_config(PretrainConfig, None, ["model=t5", f"pairs.path={place}"])


def test_files_of_a_folder_of_pairs_are_splits_by_their_names(tmp_path):
    names = {"one": "train-1.csv", "two": "train-2.csv", "three": "dev.csv", "four": "test.csv", "five": "other.csv"}
    config = folder_of_pairs(tmp_path / "data", **names)
    found = load_pairs(config.pairs, config.corpus, 0)
    kinds = [sorted({pair.source.split()[0] for pair in part}) for part in (found.train, found.validation, found.test)]
    assert kinds == [["one", "two"], ["three"], ["four"]]
    assert found.train[0].origin == f"{tmp_path / 'data' / 'train-1.csv'} row 1"
    assert found.train[4].origin == f"{tmp_path / 'data' / 'train-2.csv'} row 1"
    assert "train: train-1.csv, train-2.csv; validation: dev.csv; test: test.csv; not read: other.csv" in found.notes[0]


def test_a_folder_of_pairs_without_such_names_is_read_whole(tmp_path):
    config = folder_of_pairs(tmp_path / "data", one="a.csv", two="b.csv")
    found = load_pairs(config.pairs, config.corpus, 0)
    assert len(found.train) + len(found.validation) == 8 and found.test is None


def test_a_test_file_of_a_folder_without_targets_is_not_used(tmp_path):
    config = folder_of_pairs(tmp_path / "data", one="train.csv", unlabelled="test.csv")
    found = load_pairs(config.pairs, config.corpus, 0)
    assert found.test is None and {pair.source.split()[0] for pair in found.train + found.validation} == {"one"}
    assert any("test.csv: not used: it has no targets in 'target'" in note for note in found.notes)


@pytest.mark.parametrize("names", [{"one": "train.csv", "held": "test.csv"}, {"one": "pairs.csv", "held": "test.csv"}])
def test_a_tokenizer_reads_no_test_pairs(tmp_path, names):
    config = folder_of_pairs(tmp_path / "data", **names)
    text = " ".join(iter_documents(training_text(config.pairs, config.corpus), "all"))
    assert "one" in text and "out" in text and "held" not in text
