"""docs/generate.md: its commands run and name every control."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest

from generate.__main__ import main
from generate.config import GenerateConfig
from mini_llm.model import CausalLM, MaskedLM, save_model
from mini_llm.tokenization.save import save_tokenizer
from tests.models import decoder, encoder, randomized

PAGE = (Path(__file__).parents[2] / "docs" / "generate.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tiny_tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("document")
    sizes = {"vocab_size": 384, "bos_token_id": 1, "eos_token_id": 2}
    ends = {"cls_token_id": 5, "sep_token_id": 6}
    for name, model in (
        ("gpt", CausalLM(decoder(**sizes))),
        ("mlm", MaskedLM(encoder(**sizes, **ends))),
    ):
        save_model(randomized(model), root / "runs" / name / "model")
        save_tokenizer(tiny_tokenizer, root / "runs" / name / "model", "masked" if name == "mlm" else "causal", 32)
    (root / "prompts.txt").write_text("def \n\nclass \n")
    (root / "schema.json").write_text(json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}}))
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(folder, command, monkeypatch, capsys):
    program, module, stage, *arguments = shlex.split(command)
    assert (program, module, stage) == ("python", "-m", "generate")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO("def \n/top\n"))
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *([] if {"--fill", "inspect"} & {*arguments} else ["--device", "cpu"])])
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    assert out or "--output" in arguments or ".html: " in err


def test_the_page_shows_every_setting():
    for name in GenerateConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in PAGE, name
