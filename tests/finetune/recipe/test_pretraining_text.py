"""The text that `make finetune` pretrains on where there is no model yet."""

import json
from pathlib import Path

import pytest

import finetune.pipeline as module
from finetune.data_config import DataConfig
from finetune.pipeline import main, write_text


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "ENOUGH", 1000)
    rows = [{"review": f"number {i} tells of {'joy' if i % 2 else 'grief'}", "stars": i % 2} for i in range(100)]
    for name, part in (("reviews.jsonl", rows[:80]), ("test.jsonl", rows[80:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path / "reviews.jsonl"


COLUMNS = ["data.text=review", "data.label=stars"]


def test_it_holds_the_training_texts_and_none_that_will_be_scored(table, capsys):
    arguments = [f"data.path={table}", "data.test=test.jsonl", *COLUMNS]
    assert main("text", *arguments) == 0
    file = Path(capsys.readouterr().out.strip())
    texts = {json.loads(line)["text"] for line in file.read_text().splitlines()}
    assert file.name == "reviews.jsonl" and file.is_relative_to("runs/texts")
    numbers = {int(text.split()[1]) for text in texts}
    assert numbers <= set(range(80)) and 60 < len(numbers) < 80, "a part is held out for validation"
    assert write_text(arguments) == file, "the same data has the same file"


def test_little_text_and_the_built_in_task_are_left_to_the_built_in_corpus(table, monkeypatch):
    assert DataConfig().path == module.BUILT_IN and write_text([]) is None
    monkeypatch.setattr(module, "ENOUGH", 10_000)
    assert write_text([f"data.path={table}", *COLUMNS]) is None
    assert not Path("runs").exists()


def test_a_wrong_column_is_an_error_before_any_pretraining(table, capsys):
    assert main("text", f"data.path={table}", "data.text=review", "data.label=mood") == 3
    assert "no column 'mood'" in capsys.readouterr().err
