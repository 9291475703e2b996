"""Faults 36, 52, 54, 58, 60: empty input, secrets, unusual environments, no network, missing packages."""

import os
import shutil
import subprocess
import sys

from chaos.kills import ROOT
from chaos.lab import COMMANDS, Lab
from chaos.registry import Differs, Seen, check, expect, fault

RUN = "gpt"
CANARY = "canary-5d41402abc4b2a76b9719d911017c592"


@fault(36, "text file empty, blank, missing, or an empty folder", "exit 3, path named")
def no_text(lab: Lab) -> Seen:
    def one(kind: str) -> None:
        folder = lab.folder(kind)
        path = folder / "text.txt"
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind != "missing":
            path.write_text("" if kind == "empty" else " \n\t\n" * 100)
        expect(lab.launch(folder, RUN), 3, "text.txt")

    kinds = ["empty", "blank", "missing", "folder"]
    lab.share(kinds, one)
    return Seen(f"{len(kinds)} inputs: exit 3, path named")


@fault(52, "secrets in the environment and on the command line", "they appear in no file and no output")
def secrets(lab: Lab) -> Seen:
    folder = lab.folder("secret", ready=RUN)
    environment = {"WANDB_API_KEY": CANARY, "HF_TOKEN": CANARY, "MY_SECRET": CANARY}
    outcome = lab.launch(folder, RUN, "tracking.wandb=offline", f"tracking.group={CANARY}", environment=environment)
    expect(outcome, 0)
    check(CANARY not in outcome.text, "a secret was printed")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    holding = [path.name for path in files if CANARY.encode() in path.read_bytes()]
    check(not holding, f"a secret was written to {holding}")
    return Seen(f"searched {len(files)} files and the output: no secret found")


@fault(54, "locale C, no UTF-8, dumb and narrow terminal, path with spaces and accents", "same final bytes")
def environments(lab: Lab) -> Seen:
    stage, arguments = COMMANDS[RUN]
    folder = lab.folder("a b \u00e9\u4e2d", ready=RUN)
    settings = {
        **{"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        **{"TERM": "dumb", "COLUMNS": "20", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    }
    result = subprocess.run(
        [sys.executable, "-m", stage, *arguments],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        timeout=300,
    )
    text = result.stderr.decode(errors="replace")
    check(result.returncode == 0 and "Traceback" not in text, text[-800:])
    check("\x1b[" not in text, "escape sequences in a dumb terminal")
    lab.compare(folder, RUN)
    return Seen("exit 0, readable, 0 bytes differ")


@fault(58, "no network", "no connection is attempted, from text to model")
def no_network(lab: Lab) -> Seen:
    folder = lab.folder("network")
    asked = folder / "asked.txt"

    def prepare() -> None:
        def audited(event: str, arguments: tuple) -> None:
            if event in ("socket.connect", "socket.getaddrinfo"):
                with asked.open("a") as file:
                    file.write(f"{event} {arguments[1:]}\n")

        sys.addaudithook(audited)

    expect(lab.launch(folder, RUN, prepare=prepare), 0)
    expect(lab.launch(folder, "classifier", prepare=prepare), 0)
    check(not asked.exists(), f"attempted {asked.read_text()[:300] if asked.exists() else ''}")
    return Seen("tokenizer, pretraining, fine-tuning: 0 connections")


@fault(60, "wandb or deepspeed not installed", "wandb: run continues; deepspeed: exit 2, package named")
def missing_packages(lab: Lab) -> Seen:
    folder = lab.folder("wandb", ready=RUN)

    def without(*names: str) -> None:
        for name in names:
            for loaded in [n for n in sys.modules if n.partition(".")[0] == name]:
                del sys.modules[loaded]
            sys.modules[name] = None

    outcome = lab.launch(folder, RUN, "tracking.wandb=offline", prepare=lambda: without("wandb"))
    expect(outcome, 0, "W&B is not used")
    lab.compare(folder, RUN)
    shutil.rmtree(folder)
    folder = lab.folder("deepspeed", ready=RUN)
    outcome = lab.launch(folder, RUN, "runtime.zero_stage=2", prepare=lambda: without("deepspeed"))
    if "deepspeed" not in outcome.text.lower():
        raise Differs(f"DeepSpeed is not named: {outcome.text[-500:]}")
    expect(outcome, 2)
    return Seen("W&B: same bytes; DeepSpeed: exit 2")
