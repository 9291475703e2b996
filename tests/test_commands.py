"""Every command: its help has examples that parse, hides nothing, and docs/commands.md and README's table name it."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from accelerate.state import AcceleratorState

import finetune.__main__
import generate.__main__
import mini_llm.__main__
import mini_llm.export.__main__
import pretrain.__main__
import scoring.__main__
import tokenizer.__main__
from mini_llm.engine.cli import SettingsCommand, run_app
from mini_llm.engine.config import load_config, split_arguments

ROOT = Path(__file__).parents[1]
APPS = {
    "tokenizer": tokenizer.__main__.app,
    "pretrain": pretrain.__main__.app,
    "finetune": finetune.__main__.app,
    "generate": generate.__main__.app,
    "generate inspect": generate.__main__.inspect_app,
    "scoring": scoring.__main__.app,
    "mini_llm": mini_llm.__main__.app,
    "mini_llm export": mini_llm.export.__main__.app,
}
# The command of a group that runs when none is named.
DEFAULTS = {"pretrain": "train", "finetune": "train", "scoring": "score"}


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        if DEFAULTS.get(name) != word:
            yield from walk(f"{name} {word}", below)


GROUPS = {name: typer.main.get_command(app) for name, app in APPS.items()}
COMMANDS = dict(pair for name, group in GROUPS.items() for pair in walk(name, group))


def examples(text: str) -> list[list[str]]:
    """The words behind "python -m" of the examples in a help text."""
    text = re.sub(r"\[/?(?:bold|dim)\]", "", text).replace("$'", "'")
    found = []
    for line in (line.strip() for line in text.splitlines() if line.startswith("  ")):
        inner = line.removesuffix("'") if line.startswith("ssh") else line
        # Without what the shell reads: pipes, redirections, another command.
        for part in re.split(r" (?:\||\|\||&&|>|<) ", inner):
            if module := re.search(r"(?:\bpython|torchrun .*|accelerate launch .*) -m (.*)", part):
                found.append(shlex.split(module[1], comments=True))
    return found


def parse(words: list[str]) -> None:
    """Parse a command without running it. Raises click.UsageError and ConfigError."""
    name = max((name for name in GROUPS if words[: len(name.split())] == name.split()), key=len)
    command, rest = GROUPS[name], words[len(name.split()) :]
    if name == "mini_llm" and rest and rest[0] in APPS:
        return parse(rest)
    while hasattr(command, "commands"):
        named = bool(rest) and rest[0] in command.commands
        if not named and name not in DEFAULTS:
            assert command.invoke_without_command or not rest, words
            command.make_context(name, list(rest))
            return None
        command = command.commands[rest[0] if named else DEFAULTS[name]]
        name, rest = f"{name} {rest[0]}" if named else name, rest[1:] if named else rest
    with command.make_context(name, list(rest)) as context:
        given = context.params
    if isinstance(command, SettingsCommand):
        path, settings = split_arguments(given.get("arguments") or given.get("overrides") or [])
        if given.get("data"):
            settings += [f"data.path={given['data']}"] if name.startswith("finetune") else ["corpus.sources.0.path=x"]
        # A sweep takes several values.
        settings = [setting.partition(",")[0] if name == "finetune sweep" else setting for setting in settings]
        load_config(type(command).load_config_class(), path, settings)
    return None


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_has_examples_that_parse(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = examples(COMMANDS[name].help or "")
    assert any(words[: len(name.split())] == name.split() for words in found)
    for words in found:
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"{shlex.join(words)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_shows_all_of_its_text(name, capsys, monkeypatch):
    """Text in brackets is markup for Rich, and disappears."""
    monkeypatch.setenv("COLUMNS", "200")
    for parameter in COMMANDS[name].params:
        assert "[" not in (getattr(parameter, "help", "") or "").replace("\\[", ""), parameter.name
    assert "Exit codes" in COMMANDS[name].help
    with pytest.raises(SystemExit):
        COMMANDS[name].main(["--help"], prog_name=f"python -m {name}")
    shown = re.sub(r"\W+", " ", capsys.readouterr().out)
    text = re.sub(r"\[/?(?:bold|dim)\]", "", COMMANDS[name].help)
    assert re.sub(r"\W+", " ", text).strip() in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_is_in_the_documents(name):
    typed = f"python -m {name}"
    page = (ROOT / "docs" / "commands.md").read_text()
    assert re.search(rf"^\| `{re.escape(typed)}\b", page, re.M)
    readme = (ROOT / "README.md").read_text()
    table = re.search(r"^## Commands\n(.*?)^## ", readme, re.M | re.S)[1]
    assert "docs/commands.md" in table
    above, _, word = name.rpartition(" ")
    rows = [row for row in table.splitlines() if f"`python -m {above}`" in row]
    assert f"`{typed}`" in table or any(f"`{word}`" in row for row in rows)


PAGE = (ROOT / "docs" / "commands.md").read_text()
WALK = [shlex.split(line)[2:] for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_this_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("MINI_LLM_WANDB_RUN", "")  # the commands set it
    generator = np.random.default_rng(0)
    words = {"good": ["fine", "great", "lovely", "film"], "bad": ["poor", "awful", "dull", "film"]}
    rows = [(label, " ".join(generator.choice(words[label], 6))) for label in generator.choice(list(words), 200)]
    Path("reviews.csv").write_text("\n".join(["label,text", *(f"{label},{text}" for label, text in rows)]))
    syllables = ["ba", "ke", "lo", "mi", "nu", "pa", "re", "so", "ti", "vu"]
    made = ["".join(generator.choice(syllables, 3)) for _ in range(300)]
    Path("notes.txt").write_text("\n\n".join(f"The {' '.join(generator.choice(made, 9))}." for _ in range(1500)))
    for words in WALK:
        apps = {name: app for name, app in APPS.items() if words[: len(name.split())] == name.split()}
        name = max(apps, key=len)
        AcceleratorState._reset_state()  # each command has a process of its own
        with pytest.raises(SystemExit) as end:
            run_app(apps[name], name, words[len(name.split()) :])
        assert not end.value.code, (words, capsys.readouterr().err)
    for name in ("inspect.html", "labelled.csv", "runs/index.html", "runs/compare.html"):
        assert Path(name).stat().st_size


def test_a_reader_that_has_gone_ends_a_command_as_sigpipe_does():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mini_llm", "settings"]
    found = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (found.returncode, found.stderr) == (128 + signal.SIGPIPE, "")
