"""`--interactive`: commands, undo, and settings that hold from the next prompt on."""

import io
import json

import pytest

from generate.config import GenerateConfig
from generate.decode import TextGenerator
from generate.interactive import interact
from generate.output import Printer
from tests.byte_tokenizer import ByteTokenizer
from tests.models import tiny_model


@pytest.fixture
def session(monkeypatch, capsys):
    """session(lines) -> (printer, JSON rows, standard error)"""

    def run(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        printer = Printer(TextGenerator(tiny_model(), ByteTokenizer(), GenerateConfig(max_new_tokens=6)), as_json=True)
        interact(printer)
        out, err = capsys.readouterr()
        return printer, [json.loads(line) for line in out.splitlines()], err

    return run


def test_a_setting_holds_from_the_next_prompt_on(session):
    _, rows, err = session(
        "ab", "/set temperature=0 max_new_tokens=3", "ab", "/set temperature=-1", "/set nothing=1", "/set"
    )
    assert len(rows[0]["ids"]) == 6 and len(rows[1]["ids"]) == 3
    assert "temperature" in err and "nothing" in err and "max_new_tokens = 3" in err


def test_undo_goes_back_to_the_text_before_the_last_answer(session):
    printer, rows, err = session("ab", "", "/undo", "", "/undo", "/undo", "/undo")
    assert rows[1]["prompt"] == rows[2]["prompt"] == "ab" + rows[0]["text"]
    assert printer.text == "" and "nothing to undo" in err


def test_top_shows_the_candidates_of_the_last_token(session):
    printer, rows, err = session("/top", "ab", "/set temperature=0", "ab", "/top 3")
    assert "no generated token yet" in err
    lines = err.splitlines()[-3:]
    figures = [[float(x) for x in line.split()[:2]] for line in lines]
    assert figures[0][0] >= figures[1][0] >= figures[2][0]
    assert "chosen" in lines[0] and figures[0][1] == 1.0 and figures[1][1] == 0.0
    raw, _ = printer.generator.last_distribution(printer.samples[-1])
    assert figures[0][0] == pytest.approx(float(raw.max()), abs=1e-4)
    assert int(raw.argmax()) == rows[1]["ids"][-1]


def test_save_writes_prompt_and_text(session, tmp_path):
    printer, rows, err = session("ab", f"/save {tmp_path / 'text.txt'}", "/save", "/save no/such/folder/x")
    assert (tmp_path / "text.txt").read_text() == "ab" + rows[0]["text"] == printer.text
    assert "needs a file" in err and "cannot write it" in err


def test_help_unknown_commands_and_prompts_with_a_slash(session):
    _, rows, err = session("/help", "/hlep", "//usr", "/usr/bin")
    assert "/undo" in err and "/hlep: no such command" in err
    assert [row["prompt"] for row in rows] == ["/usr", "/usr/bin"]
