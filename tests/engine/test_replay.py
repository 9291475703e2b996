"""`python -m mini_llm replay RUN STEP`: the step again, bit for bit, for every objective, with its documents."""

import csv
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune.config import FinetuneConfig
from finetune.run import finetune
from finetune.run import replay as replay_finetuning
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.jsonl import read_rows
from pretrain.config import PretrainConfig
from pretrain.run import pretrain
from pretrain.run import replay as replay_pretraining

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
STEPS = 14
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}


def settings(**changes) -> dict:
    fields = {
        "max_steps": STEPS,
        "budget": None,
        "save_every": 5,
        "evaluate_every": 7,
        "runtime": {"device": "cpu", "precision": "fp32"},
        "tracking": {"wandb": "disabled"},
    }
    return {**fields, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of every kind; the GPT's ends by a budget, so that its schedule was planned anew on the way."""
    folder = tmp_path_factory.mktemp("replay")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with open("poems.csv", "w", newline="") as file:
            rows = [
                [f"the {i % 7} of poem {i} is {'cat' if i % 2 else 'dog'} number {i * i % 97} " * 4] for i in range(300)
            ]
            csv.writer(file).writerows([["text", "label"], *([text, "ab"[i % 2]] for i, [text] in enumerate(rows))])
        corpus = {"sources": "poems.csv"}
        sized = {"corpus": corpus, "sizes": {**SIZES, "dropout": 0.1}, "global_batch_size": 8, "micro_batch_size": 4}
        sized["vocab_size"] = 320
        pretrain(PretrainConfig(model="gpt", run="gpt", **sized, **settings(budget="3s", max_steps=None)))
        pretrain(PretrainConfig(model="mlm", run="mlm", **sized, **settings()))
        pretrain(PretrainConfig(model="t5", run="t5", **{**sized, "vocab_size": 450}, **settings()))
        labels = {"path": "poems.csv"}
        finetune(FinetuneConfig(model="runs/gpt", run="classifier", data=labels, batch_size=8, **settings()))
    return folder


def digests(run: Path) -> dict[str, str]:
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    "run, step", [("gpt", 3), ("gpt", -1), ("mlm", 4), ("mlm", 13), ("t5", 12), ("classifier", 11)]
)
def test_a_replayed_step_is_bitwise_equal(folder, run, step, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(folder)
    path = Path("runs", run)
    rows = [row for row in read_rows(path / "metrics.jsonl") if "train/loss" in row]
    step = step if step > 0 else rows[-1]["step"]
    before = digests(path)
    capsys.readouterr()
    again = replay_finetuning if run == "classifier" else replay_pretraining
    again(path, step, tmp_path / "batch.safetensors")
    said = capsys.readouterr().out
    assert said.count("equal") == 3 and "DIFFERENT" not in said, said
    assert repr(rows[step - 1]["train/loss"]) in said
    assert "gradient norm of matrices" in said and "gradient norm of vectors" in said
    assert "poems.csv row " in said and " is cat number " in said
    tensors = load_file(tmp_path / "batch.safetensors")
    assert len(tensors["0/input_ids"]) == (8 if run == "classifier" else 4)
    assert digests(path) == before


def test_the_named_row_is_the_row_that_was_read(folder, monkeypatch, capsys):
    """The number in an excerpt of a text is that of its row, counted from 0."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    replay_finetuning(Path("runs/classifier"), 6, None)
    said = capsys.readouterr().out
    names = said.split("rank 0: ")[1].splitlines()[0].replace("\n", "").split(", poems.csv row ")
    rows = {int(name.removeprefix("poems.csv row ").replace(",", "")) for name in names}
    found = {int(number) + 1 for number in re.findall(r"of poem (\d+) is", said)}
    assert found and found <= rows


def test_the_stage_is_found_and_a_step_that_was_never_made_is_an_error(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=f"steps 1 to {STEPS}"):
        replay_pretraining(Path("runs/mlm"), STEPS + 1, None)
    command = [sys.executable, "-m", "mini_llm", "replay", "runs/mlm"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "2"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "from the beginning" in done.stdout and "poems.csv row" in done.stdout
    done = subprocess.run([*command[:-1], "nowhere", "2"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
