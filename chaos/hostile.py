"""Faults 49 to 51: files made by an attacker, with matching hashes."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from chaos.damage import RUN, unfinished
from chaos.lab import Lab
from chaos.registry import Seen, check, expect, fault
from mini_llm.engine.checkpoint.format import write_manifest


class _Touch:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return (open, (str(self.canary), "w"))


@fault(49, "pickles instead of weights, optimizer, state, tokenizer; matching manifest", "exit 4, no pickle executed")
def pickles(lab: Lab) -> Seen:
    names = ["model/model.safetensors", "optimizer.safetensors", "state.json", "model/config.json"]

    def one(name: str) -> None:
        folder = unfinished(lab, "pickle")
        canary = folder / "canary"
        poison = pickle.dumps(_Touch(canary))
        for checkpoint in (folder / "runs" / RUN / "checkpoints").glob("step-*"):
            (checkpoint / name).write_bytes(poison)
            forge(checkpoint)
        outcome = lab.launch(folder, RUN)
        check(not canary.exists(), f"{name}: the pickle was executed")
        expect(outcome, 4, Path(name).name)

    lab.share(names, one)
    folder = lab.folder("pickle", ready=RUN)
    canary = folder / "canary"
    (folder / "runs/tokenizer-text/tokenizer.model").write_bytes(pickle.dumps(_Touch(canary)))
    expect(lab.launch(folder, RUN), 4, "tokenizer.model")
    check(not canary.exists(), "tokenizer.model: the pickle was executed")
    return Seen(f"{len(names) + 1} files: exit 4 each, no pickle executed")


def forge(directory: Path) -> None:
    """Rewrite the manifest to match the files, as an attacker would."""
    step = int(directory.name[5:])
    (directory / "manifest.json").unlink()
    write_manifest(directory, {"step": step})


@fault(50, "malicious safetensors with a matching manifest", "exit 4, fast and in little memory")
def hostile_tensors(lab: Lab) -> Seen:
    def header(size: int) -> bytes:
        return size.to_bytes(8, "little") + b"{" + b" " * 100

    overlap = json.dumps(
        {
            "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
        }
    ).encode()
    contents: dict[str, Callable[[Path], None]] = {
        "header of 2^60 bytes": lambda p: p.write_bytes(header(1 << 60)),
        "header of 99 MB of spaces": lambda p: p.write_bytes(header(99_000_000)),
        "overlapping": lambda p: p.write_bytes(len(overlap).to_bytes(8, "little") + overlap + bytes(24)),
        "one key too many": lambda p: save_file({**load_file(p), "model.more": torch.zeros(2)}, p),
        "one key missing": lambda p: save_file(dict(list(load_file(p).items())[1:]), p),
        "other shapes": lambda p: save_file({k: v.reshape(-1)[:1].clone() for k, v in load_file(p).items()}, p),
        "integers": lambda p: save_file({k: v.to(torch.int8) for k, v in load_file(p).items()}, p),
    }
    names = ["model/model.safetensors", "optimizer.safetensors"]
    cases = [(name, content) for name in names for content in contents]

    def one(case: tuple[str, str]) -> float:
        name, content = case
        folder = unfinished(lab, "hostile")
        for checkpoint in (folder / "runs" / RUN / "checkpoints").glob("step-*"):
            contents[content](checkpoint / name)
            forge(checkpoint)
        outcome = lab.launch(folder, RUN)
        expect(outcome, 4)
        shutil.rmtree(folder)
        return outcome.seconds

    seconds = max(lab.share(cases, one))
    return Seen(f"{len(cases)} files: exit 4 each, within {seconds:.1f} s")


@fault(51, "malicious manifest and configuration: path traversal, YAML bombs and objects, huge files", "refused")
def hostile_texts(lab: Lab) -> Seen:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
    )
    configs = {
        "bomb": bomb,
        "object": "run: !!python/object/apply:os.system ['touch canary']\n",
        "unknown": "nonsense: 1\n",
        "large": "x: " + "y" * 10_000_000,
        "run": "run: ../../x\n",
    }

    def one(name: str) -> None:
        folder = lab.folder("config", ready=RUN)
        (folder / "bad.yaml").write_text(configs[name])
        outcome = lab.launch(folder, RUN, "bad.yaml", timeout=60)
        expect(outcome, 2)
        check(not (folder / "canary").exists(), "the YAML object was created")

    lab.share(list(configs), one)
    manifests = 0
    for name in ("../../../text.txt", "/etc/hostname"):
        folder = unfinished(lab, "manifest")
        for path in (folder / "runs" / RUN / "checkpoints").glob("step-*/manifest.json"):
            content = json.loads(path.read_text())
            content["files"][name] = {"size": 1, "sha256": "0"}
            content["version"] = 1
            path.write_text(json.dumps(content))
        expect(lab.launch(folder, RUN), 4, "leaves the directory")
        manifests += 1
    return Seen(f"{len(configs)} configurations: exit 2; {manifests} manifests: exit 4; no code executed")
