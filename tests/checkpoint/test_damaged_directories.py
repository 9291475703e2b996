"""Every command given a damaged model directory prints one message, exits with 4, and executes nothing from it."""

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.__main__ import app as finetune_app
from generate.__main__ import main as generate_main
from mini_llm.engine.cli import run_app
from mini_llm.export.__main__ import app as export_app
from mini_llm.model import CausalLM, SequenceClassifier, save_model
from mini_llm.tokenization.save import save_tokenizer
from pretrain.__main__ import app as pretrain_app
from tests.damage import INDEX, TWO, WEIGHTS, Trap, change
from tests.models import decoder, randomized

# Or the file is too small for its config.json, which is checked first.
UNREADABLE = "unreadable weights|the files hold"
ROWS = "text,label\n" + "".join(f"good {i},a\nbad {i},b\n" for i in range(20))


def header(content: bytes, length: int | None = None) -> Callable[[Path], Any]:
    size = struct.pack("<Q", len(content) if length is None else length)
    return lambda directory: (directory / WEIGHTS).write_bytes(size + content + bytes(8))


def tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / WEIGHTS
        named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        save_file({n: t for n, t in {**load_file(path), **named}.items() if t is not None}, path)

    return damage


def shard_outside(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))


def pickled(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(directory / "executed")))


def no_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


def deep_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.model").unlink()
    (directory / "tokenizer.json").write_text("[" * 100_000)


def replaced(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


DAMAGES = {
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json|no pretrained model there"),
    "a deep config": (lambda d: (d / "config.json").write_text("[" * 100_000), "config.json: not a JSON file"),
    "an unknown family": (
        lambda d: change(d, model_type="mamba", architectures=["MambaForCausalLM"]),
        "known are bert",
    ),
    "a wrong size": (lambda d: change(d, hidden_size=10**9), "weights at least"),
    "a wrong depth": (lambda d: change(d, num_hidden_layers=3, layer_types=None), "model.layers.2."),
    "a missing tensor": (tensors(model__norm__weight=None), "model.norm.weight is missing"),
    "an extra tensor": (tensors(model__lora__weight=torch.zeros(2)), "model.lora.weight is not part of"),
    "a wrong shape": (tensors(model__norm__weight=torch.zeros(7)), "model.norm.weight gives"),
    "a huge header": (header(b"{}", 2**60), UNREADABLE),
    "overlapping tensors": (header(json.dumps({**TWO, "b": TWO["a"]}).encode()), UNREADABLE),
    "a deep header": (header(b'{"a": ' + b"[" * 200_000), UNREADABLE),
    "a shard outside": (shard_outside, "leaves the directory"),
    "pickled weights": (pickled, "never loaded because they can run any program"),
    "no tokenizer": (no_tokenizer, "tokenizer"),
    "a deep tokenizer": (deep_tokenizer, "tokenizer.json"),
    "weights that are a FIFO": (lambda d: replaced(d / WEIGHTS, os.mkfifo), "not a regular file"),
    "a tokenizer without end": (
        lambda d: replaced(d / "tokenizer.model", lambda path: path.symlink_to("/dev/zero")),
        "tokenizer.model: not a regular file",
    ),
    "a configuration that is a FIFO": (
        lambda d: replaced(d / "tokenizer_config.json", os.mkfifo),
        "tokenizer_config.json: not a regular file",
    ),
}
# Accelerate keeps the first precision of a process, also for later tests.
QUIET = ["tracking.wandb=disabled", "runtime.device=cpu", "runtime.precision=fp32"]
# {0}: the model directory, {1}: a CSV file.
COMMANDS = {
    "generate": (generate_main, ["{0}", "def"]),
    "inspect": (generate_main, ["inspect", "{0}", "def"]),
    "finetune": (finetune_app, ["--init", "{0}", "--data", "{1}", "budget=1s", *QUIET]),
    "predict": (finetune_app, ["predict", "{0}", "{1}"]),
    "pretrain": (pretrain_app, ["--init", "{0}", "--data", "{1}", "--budget", "1s", *QUIET]),
    "export": (export_app, ["gguf", "{0}", "--out", "out.gguf"]),
    "check": (export_app, ["check", "{0}", "{1}"]),
}


@pytest.fixture(scope="module")
def sound(tiny_tokenizer, tmp_path_factory):
    """Intact directories of a language model and a classifier, to be damaged."""
    root = tmp_path_factory.mktemp("sound")
    for name, head in (("lm", CausalLM), ("classifier", SequenceClassifier)):
        labels = {"id2label": {0: "a", 1: "b"}} if name == "classifier" else {}
        save_model(randomized(head(decoder(vocab_size=384, bos_token_id=1, eos_token_id=2, **labels))), root / name)
        save_tokenizer(tiny_tokenizer, root / name, "causal", 32)
    return root


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_directory_is_refused_by_every_command(command, what, sound, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGES[what]
    directory = shutil.copytree(sound / ("classifier" if command == "predict" else "lm"), tmp_path / "model")
    damage(directory)
    (tmp_path / "rows.csv").write_text(ROWS)
    run, arguments = COMMANDS[command]
    filled = [argument.format(directory, tmp_path / "rows.csv") for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        run(filled) if run is generate_main else run_app(run, command, filled)
    error = capfd.readouterr().err
    assert ended.value.code == 4, error
    assert re.search(message, error), error
    assert str(directory) in error and "Traceback" not in error and "internal error" not in error
    assert not (directory / "executed").exists() and not (tmp_path / "out.gguf").exists()
