"""Checkpoints: atomic directories with a hash manifest; weights as a Hugging Face directory, no pickles.

checkpoints/step-00000100/
    model/                 Hugging Face directory, fp32
    optimizer.safetensors  "<parameter>/<state>", whole tensors whatever the number of ranks or ZeRO stage
    state.json             step, elapsed seconds, best so far
    manifest.json          size and sha256 of every file above, written last
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.errors import CheckpointError
from engine.sharding import gather_state, gather_weights, restore_state, unwrap
from engine.tracking import sha256
from model import load_model, save_model

Decorate = Callable[[Path], None]


def save_checkpoint(
    root: Path,
    model: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    state: dict[str, Any],
    decorate: Decorate,
    keep_last: int,
) -> None:
    """Write checkpoints/step-<state["step"]> and remove older ones beyond `keep_last`. Every rank must call this.

    `decorate(directory)` adds what else belongs into the model directory (the tokenizer's files).
    """
    weights, moments = gather_state(model, optimizer)
    if accelerator.is_main_process:
        parent = root / "checkpoints"
        with _publish(parent / f"step-{state['step']:08d}") as directory:
            save_model(unwrap(model), directory / "model", weights)
            decorate(directory / "model")
            save_file(moments, str(directory / "optimizer.safetensors"))
            if accelerator.scaler is not None:
                (directory / "scaler.json").write_text(json.dumps(accelerator.scaler.state_dict()) + "\n")
            (directory / "state.json").write_text(json.dumps(state, indent=2) + "\n")
            write_manifest(directory)
        for old in sorted(parent.glob("step-*"))[:-keep_last]:
            shutil.rmtree(old)
        for old in parent.glob("best-*"):
            if old.name != f"best-{state.get('best_step') or 0:08d}":
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def save_best(root: Path, step: int, model: nn.Module, accelerator: Accelerator, decorate: Decorate) -> None:
    """Write checkpoints/best-<step>, a model directory. Every rank must call this."""
    weights = gather_weights(model)
    if accelerator.is_main_process:
        export_model(root / "checkpoints" / f"best-{step:08d}", unwrap(model), weights, decorate)
    accelerator.wait_for_everyone()


def export_model(directory: Path, model: nn.Module, weights: dict[str, Tensor] | None, decorate: Decorate) -> None:
    """Write a model directory atomically."""
    with _publish(directory) as temporary:
        save_model(model, temporary, weights)
        decorate(temporary)


class _publish:
    """Context: a temporary sibling directory that is synced and renamed to `target` on success, removed on failure."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.temporary = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")

    def __enter__(self) -> Path:
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            return
        for path in [*self.temporary.rglob("*"), self.temporary]:
            _fsync(path)
        if self.target.exists():
            aside = self.temporary.with_name(self.temporary.name + "-old")
            os.rename(self.target, aside)
            os.rename(self.temporary, self.target)
            shutil.rmtree(aside)
        else:
            os.rename(self.temporary, self.target)
        _fsync(self.target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(directory: Path) -> None:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    entries = {
        str(path.relative_to(directory)): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    (directory / "manifest.json").write_text(json.dumps({"version": 1, "files": entries}, indent=2) + "\n")


def find_damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None when every file is as the manifest says."""
    try:
        entries = json.loads((directory / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json: {error}"
    for name, entry in entries.items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"manifest.json: '{name}' leaves the directory"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes, expected {entry['size']}"
        if sha256(path) != entry["sha256"]:
            return f"{name} is damaged (sha256 differs)"
    return None


def latest_checkpoint(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are all intact; `say` names those passed over.

    Raises CheckpointError when there are checkpoints and none is intact: starting from zero must be asked for.
    """
    found = sorted((root / "checkpoints").glob("step-*"), reverse=True)
    for directory in found:
        damage = find_damage(directory)
        if damage is None:
            return directory
        say(f"{directory}: {damage}; taking the one before")
    if found:
        raise CheckpointError(f"{root}: no checkpoint is intact. To start again, delete {root} or use another RUN=name")
    return None


def load_checkpoint(directory: Path, model: nn.Module, optimizer: Any, accelerator: Accelerator) -> dict[str, Any]:
    """Fill a prepared model and optimizer; returns state.json. Every rank must call this."""
    source = load_model(directory / "model")
    restore_state(model, optimizer, source.state_dict(), load_file(str(directory / "optimizer.safetensors")))
    if accelerator.scaler is not None and (directory / "scaler.json").is_file():
        accelerator.scaler.load_state_dict(json.loads((directory / "scaler.json").read_text()))
    return json.loads((directory / "state.json").read_text())
