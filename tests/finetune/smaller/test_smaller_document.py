"""The commands in docs/smaller.md exist and take these arguments."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from finetune.__main__ import app
from finetune.smaller.config import read_distil_config
from finetune.sweeping.grid import read_sweep

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "smaller.md").read_text(), re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_is_understood(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "finetune"]
    name, arguments = words[3], words[4:]
    command = typer.main.get_command(app).commands[name]
    with command.make_context(name, list(arguments)) as context:
        given = context.params
    if name == "sweep":
        read_sweep(given["arguments"], {"data.path": given["data"]}, given["budget"])
    if name == "distil":
        read_distil_config(Path(given["teacher"]), given["arguments"], {"run": given["run"], "budget": given["budget"]})


def test_the_document_names_all_commands():
    assert {line.split()[3] for line in COMMANDS} >= {"smaller", "distil", "sweep", "errors", "predict", "score"}
