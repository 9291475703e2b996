"""Prompts from files and standard input are the characters that stand there; stop strings may be typed with escapes."""

import csv
import gzip
import io
import json
import os
import sys
import threading

import pytest
import typer

from generate.__main__ import app, read_settings
from generate.prompts import read_prompts, read_stdin
from mini_llm.engine.cli import run_app, texts_as_arguments
from mini_llm.engine.errors import ConfigError, DataError

LINES = "def a():\n\n# caf\u00e9 \U0001f600\n  indented\n"
PROMPTS = ["def a():", None, "# caf\u00e9 \U0001f600", "  indented"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.fixture
def stdin(monkeypatch):
    """stdin(bytes) replaces standard input."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_lines_of_a_file_and_of_standard_input(tmp_path, stdin, encoding, end):
    data = LINES.replace("\n", end).encode(encoding)
    (tmp_path / "prompts.txt").write_bytes(data)
    stdin(data)
    assert read_prompts(str(tmp_path / "prompts.txt")) == read_prompts("-") == PROMPTS


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.jsonl.gz"])
def test_the_column_prompt_of_a_table(tmp_path, name):
    texts, path = ["def a():\n    return", "012", "caf\u00e9 \u65e5"], tmp_path / name
    rows = [{"id": number, "prompt": text} for number, text in enumerate(texts)]
    if ".json" in name:
        content = json.dumps(rows) if name == "p.json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["id", "prompt"])
            writer.writeheader()
            writer.writerows(rows)
    assert read_prompts(str(path)) == texts


def test_json_lines_on_standard_input(stdin):
    stdin(b'{"prompt": "a\\nb"}\n{"prompt": "c"}\n')
    assert read_prompts("-", "jsonl") == ["a\nb", "c"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a\nb\n"))
    writer.start()
    assert read_prompts(str(tmp_path / "pipe")) == ["a", "b"]
    writer.join()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.jsonl", b'{"prompt": "x"}\n{"prompt": null}\n', "row 2: no text in 'prompt'"),
        ("p.jsonl", b'{"prompt": "x"}\n{"prompt": 3}\n', "row 2: the value of 'prompt' is 3, not a text"),
        ("p.jsonl", b'{"text": "x"}\n', "no column 'prompt'"),
        ("p.txt", b"a\nb\nc\xe9\n", r"1 bytes are not valid UTF-8, the first in line 3\. .*--encoding cp1252"),
        ("p.txt", b"\n\n", "no prompt in it"),
        ("p.txt", b"\x00\x01\x02\xff", "binary"),
        ("folder", None, "a folder"),
        ("p.tzt", b"", "no such file. Did you mean .*p.txt"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, name, content, message):
    (tmp_path / "p.txt").touch()
    if content is None:
        (tmp_path / name).mkdir()
    elif content or name != "p.tzt":
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(str(tmp_path / name))


def test_another_encoding_is_named_by_the_user(tmp_path, stdin):
    (tmp_path / "p.txt").write_bytes("caf\u00e9\n".encode("cp1252"))
    assert read_prompts(str(tmp_path / "p.txt"), encoding="cp1252") == ["caf\u00e9"]
    with pytest.raises(ConfigError, match="unknown encoding 'utf-99'"):
        read_prompts(str(tmp_path / "p.txt"), encoding="utf-99")
    stdin("caf\u00e9".encode("utf-16"))
    assert read_stdin() == "caf\u00e9"


def test_escapes_in_stop_strings_match_too():
    assert read_settings({"stop": ["\\n", "a\\tb", "x"]}, []).stop == ["\\n", "\n", "a\\tb", "a\tb", "x"]
    assert read_settings({}, ["stop=\\n\\n"]).stop == ["\\n\\n", "\n\n"]


def test_a_text_that_begins_with_a_dash_is_no_option():
    parameters = typer.main.get_command(app).params
    typed = ["runs/x", "- item", "--stop", "- y", "--echo", "seed=1"]
    assert texts_as_arguments(typed, parameters) == ["--stop", "- y", "--echo", "--", "runs/x", "- item", "seed=1"]
    for plain in (["runs/x", "-", "--stop=- y"], ["runs/x", "--", "-x"], ["runs/x", "--stop", "- y"]):
        assert texts_as_arguments(plain, parameters) == plain


def test_a_short_text_that_looks_like_an_option_gets_advice(capsys):
    with pytest.raises(SystemExit) as ended:
        run_app(app, "generate", ["runs/x", "-x"])
    assert ended.value.code == 2 and "--prompt='-x...'" in " ".join(capsys.readouterr().err.split())
