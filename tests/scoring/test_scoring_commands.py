"""The command line: every command of docs/scoring.md runs, mistakes are explained, exit codes are right."""

import json
import re
import shlex
from pathlib import Path

import pytest

from mini_llm.engine.cli import run_app
from scoring.__main__ import CHOICES_HELP, COMPARE_HELP, DRIFT_HELP, SCORE_HELP, SPEED_HELP, app

PAGE = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python -m scoring")]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_app(app, "scoring", list(arguments))
    return end.value.code or 0


@pytest.fixture
def here(lab, monkeypatch) -> Path:
    monkeypatch.chdir(lab)
    return lab


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_runs(here, command, capsys):
    command, _, allowed = command.partition("||")
    code = run(*shlex.split(command)[3:])
    assert code == (6 if "-eq 6" in allowed else 0), capsys.readouterr().err
    out = capsys.readouterr().out
    assert json.loads(out) if "--json" in command else out.strip()


def test_the_page_has_every_command():
    assert {shlex.split(command)[3] for command in COMMANDS} >= {"choices", "compare", "drift", "speed", "runs/gpt"}


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("", SCORE_HELP),
        ("choices", CHOICES_HELP),
        ("compare", COMPARE_HELP),
        ("drift", DRIFT_HELP),
        ("speed", SPEED_HELP),
    ],
)
def test_every_help_has_an_example_that_parses(command, text, capsys):
    import typer

    group = typer.main.get_command(app)
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("python -m scoring")]
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" > ")[0].replace("$'", "'"))[3:]
        name = words[0] if words[0] in group.commands else "score"
        words = words[1:] if words[0] in group.commands else words
        group.commands[name].make_context(name, words)
    assert run(*filter(None, [command, "--help"])) == 0
    assert "Examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["runs/none", "x.txt"], 4, "no such directory"),
        (["runs/gpt", "none.txt"], 3, "no such file"),
        (["runs/gpt", "news.jsonl", "--text", "body"], 3, "the columns are: 'text'. Name the right one: --text COLUMN"),
        (["runs/gpt", "held-out.txt", "--stride", "99"], 2, "--stride 99: must be from 1 to the context"),
        (["runs/mlm", "held-out.txt", "--stride", "9"], 2, "--stride is for decoders"),
        (["choices", "runs/mlm", "questions.jsonl"], 2, "needs a decoder, not an encoder"),
        (["choices", "runs/gpt", "news.jsonl"], 3, "question"),
        (["compare", "runs/gpt", "--data", "news.jsonl"], 2, "two models"),
        (["compare", "runs/gpt", "runs/mlm", "--data", "news.jsonl"], 2, "different kinds"),
        (["drift", "runs/gpt", "held-out.txt", "news.jsonl"], 3, "at least two"),
        (["speed", "runs/t5"], 2, "not an encoder-decoder"),
        (["runs/gpt", "held-out.txt", "--device", "cudda"], 2, "--device cudda"),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(here, arguments, code, message, capsys):
    assert run(*arguments) == code
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and "internal error" not in err


def test_a_model_directory_called_as_a_command_is_reached_by_its_path(here, capsys):
    (here / "drift").symlink_to(here / "runs" / "gpt")
    try:
        assert run("./drift", "news.jsonl", "--samples", "0", "--json") == 0
        assert json.loads(capsys.readouterr().out)["model"] == "drift"
    finally:
        (here / "drift").unlink()
