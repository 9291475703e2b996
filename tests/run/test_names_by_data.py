"""A default name of a run belongs to one data set; other data of the same file name get a number."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from finetune.sweeping.grid import read_sweep
from mini_llm.corpus.paths import find_files
from mini_llm.engine.errors import DataError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.inputs import named_by_data, own_name
from pretrain.config import PretrainConfig
from pretrain.run_names import run_names

RUNS = Path("runs")


@pytest.fixture
def notes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b", "c"):
        Path(folder).mkdir()
        Path(folder, "notes.txt").write_text(f"the notes of {folder}\n")
    return tmp_path


def start(name, path, key="path"):
    with RunDirectory(RUNS / name) as run:
        run.record({"data": {key: path}})


def test_other_data_of_the_same_file_name_get_a_number(notes):
    assert own_name("gpt-notes", ["a/notes.txt"], RUNS) == "gpt-notes"
    start("gpt-notes", "a/notes.txt")
    assert own_name("gpt-notes", ["b/notes.txt"], RUNS) == "gpt-notes-2"
    start("gpt-notes-2", "b/notes.txt")
    assert own_name("gpt-notes", ["b/notes.txt"], RUNS) == "gpt-notes-2"
    assert own_name("gpt-notes", ["c/notes.txt"], RUNS) == "gpt-notes-3"
    assert own_name("mlm-notes", ["c/notes.txt"], RUNS) == "mlm-notes"


def test_the_same_data_have_one_name_wherever_they_lie_and_though_they_changed(notes):
    start("gpt-notes", "a/notes.txt")
    for path in ("./a/notes.txt", str(notes / "a/notes.txt"), "a/../a/notes.txt"):
        assert own_name("gpt-notes", [path], RUNS) == "gpt-notes"
    Path("b/notes.txt").write_bytes(Path("a/notes.txt").read_bytes())
    assert own_name("gpt-notes", ["b/notes.txt"], RUNS) == "gpt-notes"
    Path("a/notes.txt").write_text("changed")
    assert own_name("gpt-notes", ["a/notes.txt"], RUNS) == "gpt-notes"


def test_a_run_on_one_of_several_sources_has_other_data(notes):
    start("gpt-notes", ["a/notes.txt", "b/notes.txt"])
    assert own_name("gpt-notes", ["b/notes.txt", "a/notes.txt"], RUNS) == "gpt-notes"
    assert own_name("gpt-notes", ["a/notes.txt", "c/notes.txt"], RUNS) == "gpt-notes-2"


def test_data_that_are_no_files_and_runs_without_a_record_need_no_number(notes):
    start("gpt-notes", "a/notes.txt")
    assert own_name("gpt-notes", ["someone/notes"], RUNS) == "gpt-notes"
    assert own_name("gpt-notes", ["~no-such-user/notes.txt"], RUNS) == "gpt-notes"
    (RUNS / "gpt-notes/inputs.json").unlink()
    assert own_name("gpt-notes", ["b/notes.txt"], RUNS) == "gpt-notes"


def test_stages_name_their_runs_by_their_data(notes):
    pretraining = [PretrainConfig(model="gpt", corpus={"sources": f"{folder}/notes.txt"}) for folder in "ab"]
    start("gpt-notes", "a/notes.txt")
    assert [named_by_data(config, RUNS).run_name for config in pretraining] == ["gpt-notes", "gpt-notes-2"]
    given = pretraining[1].model_copy(update={"run": "gpt-notes"})
    assert named_by_data(given, RUNS).run_name == "gpt-notes"
    assert run_names("b/notes.txt", ["gpt", "mlm"]) == ["gpt-notes-2", "mlm-notes"]
    assert run_names("", ["gpt", "mlm"]) == ["gpt", "mlm"]

    finetuning = [FinetuneConfig(model="runs/mlm", data={"path": f"{folder}/notes.txt"}) for folder in "ab"]
    start("mlm-classifier-notes", "a/notes.txt")
    start("mlm-classifier-notes-sweep-trials", "a/notes.txt")
    assert [named_by_data(config, RUNS).run_name for config in finetuning] == [
        "mlm-classifier-notes",
        "mlm-classifier-notes-2",
    ]
    sweeps = [read_sweep([f"data.path={folder}/notes.txt", "seed=1,2"], {"model": "runs/mlm"}, "2m") for folder in "ab"]
    names = [sweep.named_by_data(RUNS).name for sweep in sweeps]
    assert names == ["mlm-classifier-notes-sweep", "mlm-classifier-notes-sweep-2"]


def test_names_as_make_asks_for_them(notes):
    start("gpt-notes", "a/notes.txt")
    repository = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pretrain.run_names", " b/notes.txt ", "gpt", "mlm"]
    found = subprocess.run(command, env={"PYTHONPATH": str(repository)}, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["gpt-notes-2", "mlm-notes"]


@pytest.mark.parametrize("path", ["~no-such-user/notes.txt", "~no-such-user/*.txt"])
def test_the_home_of_an_unknown_user_is_a_path_that_does_not_exist(notes, path):
    with pytest.raises(DataError, match="no-such-user"):
        find_files(path)
