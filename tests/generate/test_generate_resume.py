"""An interrupted `generate --file --output` continues: every row is there, in order, once, with the same text."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from generate.__main__ import main
from mini_llm.engine.run.partial import PartialOutput
from mini_llm.model import CausalLM, save_model
from mini_llm.tokenization.save import save_tokenizer
from tests.models import decoder, randomized

ROOT = Path(__file__).parents[2]
ROWS = 24
SHORT = ["--num-samples", "2", "--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("writer") / "model"
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "bos_token_id": 1, "eos_token_id": 2}
    save_model(randomized(CausalLM(decoder(**sizes))), directory)
    save_tokenizer(tiny_tokenizer, directory, "causal", 32)
    return directory


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join("\n" if number % 7 == 3 else f"prompt {number}\n" for number in range(ROWS)))
    return path


def arguments(model, prompts, output, *more):
    return [str(model), "--file", str(prompts), "--output", str(output), *SHORT, *more]


def run(*words):
    """The exit code of the command."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


def rows(path):
    """What must not depend on interruptions: all but the speed."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in found]


def test_the_file_holds_what_standard_output_gets(model, prompts, tmp_path, capsys):
    assert run(*arguments(model, prompts, tmp_path / "out.jsonl")) == 0
    assert run(str(model), "--file", str(prompts), *SHORT) == 0
    (tmp_path / "printed.jsonl").write_text(capsys.readouterr().out)
    found = rows(tmp_path / "out.jsonl")
    assert found == rows(tmp_path / "printed.jsonl")
    assert [row["row"] for row in found] == [number for number in range(1, ROWS + 1) for _ in range(2)]
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "printed.jsonl", "prompts.txt"]


def test_an_interrupted_file_is_continued_in_order_without_repetition(model, prompts, tmp_path, monkeypatch, capsys):
    assert run(*arguments(model, prompts, tmp_path / "whole.jsonl")) == 0
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr("mini_llm.engine.run.partial.STATE_INTERVAL", 0)
    commit, generated = PartialOutput.commit, []
    for stop in (4, 10, 11, 20):

        def stopping(self, batch, stop=stop, **counts):
            commit(self, batch, **counts)
            generated.append(batch[-1].number)
            if batch[-1].number == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(PartialOutput, "commit", stopping)
        assert run(*arguments(model, prompts, output)) == 130
        assert not output.exists()
        # Texts that were written but not recorded are cut off.
        with open(f"{output}.partial", "a") as file:
            file.write('{"row": 99, "te')
    monkeypatch.setattr(PartialOutput, "commit", commit)
    assert generated == list(range(1, 21))
    capsys.readouterr()
    assert run(*arguments(model, prompts, output)) == 0
    assert "continues after row 20" in capsys.readouterr().err
    assert rows(output) == rows(tmp_path / "whole.jsonl")
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "prompts.txt", "whole.jsonl"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda words, prompts, model: words.extend(["--seed", "5"]), "begun with other options"),
        (lambda words, prompts, model: prompts.write_text("other\n" * ROWS), "are not those that"),
        (lambda words, prompts, model: (model / "extra").write_text(""), "begun with other model"),
    ],
)
def test_another_command_does_not_continue_the_file(change, said, model, prompts, tmp_path, monkeypatch, capsys):
    model = shutil.copytree(model, tmp_path / "model")
    commit = PartialOutput.commit

    def stopping(self, batch):
        commit(self, batch)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialOutput, "commit", stopping)
        assert run(*arguments(model, prompts, tmp_path / "out.jsonl")) == 130
    words = arguments(model, prompts, tmp_path / "out.jsonl")
    change(words, prompts, model)
    assert run(*words) in (2, 3)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.hardlink_to(path.with_name("prompts.txt")), "the file of the prompts"),
    ],
)
def test_an_output_that_cannot_be_continued_is_refused(make, said, model, prompts, tmp_path, capsys):
    make(tmp_path / "out")
    assert run(*arguments(model, prompts, tmp_path / "out")) == 2
    assert said in capsys.readouterr().err
    assert run(str(model), "a prompt", "--output", str(tmp_path / "new")) == 2
    assert "--file" in capsys.readouterr().err


@pytest.mark.slow
def test_after_several_kills_no_row_is_missing_or_twice(model, prompts, tmp_path):
    words = arguments(model, prompts, tmp_path / "whole.jsonl", "--max-new-tokens", "300")
    command = [sys.executable, "-m", "generate", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    output = tmp_path / "out.jsonl"
    command[command.index(str(tmp_path / "whole.jsonl"))] = str(output)
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = size(output)
        deadline = time.monotonic() + 120
        while process.poll() is None and size(output) <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # so that the state is written too
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills, "the command was too fast to be killed"
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert rows(output) == rows(tmp_path / "whole.jsonl")


def size(output):
    partial = Path(f"{output}.partial")
    return partial.stat().st_size if partial.exists() else 0
