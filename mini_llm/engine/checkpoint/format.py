"""Checkpoints: atomic directories with a hash manifest; weights as a Hugging Face directory, no pickles.

checkpoints/step-00000100/
    model/                 Hugging Face directory, fp32
    optimizer.safetensors  "<parameter>/<state>", whole tensors whatever the number of ranks or ZeRO stage
    state.json             step, elapsed seconds, best so far
    manifest.json          what it was written by, size and sha256 of every file above, and its own; written last
checkpoints/best-00000080/ model/ and manifest.json: the weights of the best evaluation
With checkpoint=sharded, shards/ in both (mini_llm/engine/checkpoint/shard_files.py) takes the place of model/ and optimizer.safetensors.
checkpoints/damaged-*      found damaged and set aside
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mini_llm.engine.checkpoint.local_shards import restore_fragments
from mini_llm.engine.checkpoint.shard_files import SHARDS, Shards
from mini_llm.engine.distributed.zero import restore_state
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.run.files import atomic_directory, read_json, remove_directory, sha256
from mini_llm.model import load_model, save_model

# What a full, read-only or broken disk raises.
DISK_ERRORS = (OSError, SafetensorError)


Decorate = Callable[[Path], None]

VERSION = 2
MANIFEST = "manifest.json"
AWAY = "Its manifest fits, so it was written like this: do not trust it; delete it, and the one before is taken"
# A manifest has some hundred bytes a file.
_LARGEST_MANIFEST = 10 << 20


@dataclass
class Snapshot:
    """All of a checkpoint, in memory. `facts` goes into the manifest: what the run is and how it was launched."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    state: dict[str, Any]
    scaler: dict[str, Any] | None
    facts: dict[str, Any]


def write_checkpoint(root: Path, model: nn.Module, snapshot: Snapshot, decorate: Decorate) -> Path:
    """Write checkpoints/step-<state["step"]>. Raises OSError or SafetensorError, and then leaves nothing behind.

    `model` says the architecture; `decorate(directory)` adds what else belongs into a model directory.
    """
    step = snapshot.state["step"]
    target = step_path(root, step)
    with atomic_directory(target) as directory:
        save_model(model, directory / "model", snapshot.weights)
        fault_point("save-model")
        decorate(directory / "model")
        save_file(snapshot.moments, str(directory / "optimizer.safetensors"))
        fault_point("save-optimizer")
        if snapshot.scaler is not None:
            (directory / "scaler.json").write_text(json.dumps(snapshot.scaler) + "\n")
        (directory / "state.json").write_text(json.dumps(snapshot.state, indent=2) + "\n")
        fault_point("save-state")
        write_manifest(directory, {"step": step, **snapshot.facts})
        fault_point("save-manifest")
    return target


def write_best(root: Path, model: nn.Module, step: int, weights: dict[str, Tensor], decorate: Decorate) -> None:
    """Write checkpoints/best-<step>. Raises OSError or SafetensorError."""
    with atomic_directory(best_path(root, step)) as directory:
        save_model(model, directory / "model", weights)
        fault_point("best-model")
        decorate(directory / "model")
        write_manifest(directory, {"step": step})


def step_path(root: Path, step: int) -> Path:
    return root / "checkpoints" / f"step-{step:08d}"


def best_path(root: Path, step: int) -> Path:
    return root / "checkpoints" / f"best-{step:08d}"


def remove_old(root: Path, keep_last: int) -> None:
    """Remove checkpoints beyond the newest `keep_last`, and best weights that no checkpoint names any more."""
    found = _checkpoints(root)
    for old in found[:-keep_last]:
        remove_directory(old)
        fault_point("save-pruned")
    steps = [_best_step(path) for path in found[-keep_last:]]
    named = {best_path(root, step) for step in steps if step is not None}
    for old in (root / "checkpoints").glob("best-*"):
        if old not in named:
            remove_directory(old)


def export_model(directory: Path, model: nn.Module, weights: dict[str, Tensor] | None, decorate: Decorate) -> None:
    """Write a model directory atomically."""
    with atomic_directory(directory) as temporary:
        save_model(model, temporary, weights)
        fault_point("export-model")
        decorate(temporary)


def write_manifest(
    directory: Path, facts: Mapping[str, Any], entries: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """Write manifest.json for the files below `directory`; those of `entries` have been looked at by their writers."""
    known = entries or {}
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    seen = {name: {"size": files[name].stat().st_size, "sha256": sha256(files[name])} for name in files.keys() - known}
    listed = dict(sorted({**known, **seen}.items()))
    (directory / MANIFEST).write_text(_manifest_text({"version": VERSION, **facts, "files": listed}))


def _manifest_text(content: dict[str, Any]) -> str:
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=2) + "\n"


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, which is what was written. Raises CheckpointError."""
    path = directory / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise ValueError("too large")
        text = path.read_text()
        content = json.loads(text)
        version, entries = content["version"], content["files"]
        if version > VERSION:
            raise CheckpointError(f"{MANIFEST}: version {version}, of a newer release than this one ({VERSION})")
        own = content.pop("sha256", None)
        # Version 1 had no hash of its own.
        if version == VERSION and (own is None or text != _manifest_text(content)):
            raise ValueError("is damaged (sha256 differs)")
        for name, entry in entries.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"'{name}' leaves the directory")
            int(entry["size"]), str(entry["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST}: {getattr(error, 'strerror', None) or error}") from None
    return content


def find_damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None when all of it is as the manifest says."""
    try:
        content = read_manifest(directory)
        links = [path for path in (directory, *directory.rglob("*")) if path.is_symlink()]
        present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
        if links:
            return f"{links[0].relative_to(directory.parent)} is a symbolic link"
        for name, entry in content["files"].items():
            path = directory / name
            if name not in present:
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes, expected {entry['size']}"
            if sha256(path) != entry["sha256"]:
                return f"{name} is damaged (sha256 differs)"
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or directory).name}: {error.strerror}"
    if added := sorted(present - set(content["files"]) - {MANIFEST}):
        return f"{added[0]} is not part of it"
    if "step" in content and content["step"] != int(directory.name.rpartition("-")[2]):
        return f"{MANIFEST}: is of step {content['step']}"
    return None


def latest_checkpoint(root: Path, say: Callable[[str], None], set_aside: bool = False) -> Path | None:
    """The newest checkpoint whose files, and those of the best weights it names, are all intact.

    `say` names those passed over; `set_aside` renames them to damaged-*. Where every one lacks its best weights, the
    newest is taken all the same. Raises CheckpointError when there are checkpoints and none is intact: starting from
    zero must be asked for.
    """
    damaged, without_best = [], []
    chosen = None
    for directory in reversed(_checkpoints(root)):
        if (damage := find_damage(directory)) is not None:
            say(f"{directory}: {damage}; taking the one before")
            damaged.append(directory)
        elif (damage := damage_of_best(root, _best_step(directory))) is not None:
            say(f"{directory}: {damage}; looking for one before it")
            without_best.append(directory)
        else:
            chosen = directory
            break
    if chosen is None and without_best:
        chosen = without_best[0]
        say(f"{chosen}: taken without the best weights so far")
    if chosen is None and damaged:
        raise CheckpointError(f"{root}: no checkpoint is intact. To start again, delete {root} or use another RUN=name")
    if set_aside:
        # Newer than the chosen one, they would be in the way of those to come.
        for directory in (path for path in (*damaged, *without_best) if path.name > chosen.name):
            _set_aside(directory)
    return chosen


def _checkpoints(root: Path) -> list[Path]:
    return sorted(path for path in (root / "checkpoints").glob("step-*") if path.name[5:].isdigit())


def _best_step(directory: Path) -> int | None:
    state = read_json(directory / "state.json")
    step = state.get("best_step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else None


def damage_of_best(root: Path, step: int | None) -> str | None:
    """What is wrong with the best weights that a checkpoint names, or None."""
    if step is None:
        return None
    best = best_path(root, step)
    # Version 1 wrote a model directory without a manifest.
    if (best / "config.json").is_file():
        return None
    damage = find_damage(best)
    return f"its best weights, {best.name}/{damage}" if damage else None


def _set_aside(directory: Path) -> None:
    aside = directory.with_name(f"damaged-{directory.name}")
    for number in range(2, 1000):
        if not aside.exists():
            break
        aside = directory.with_name(f"damaged-{directory.name}-{number}")
    os.rename(directory, aside)


def load_best(root: Path, step: int) -> dict[str, Tensor] | Path:
    """Weights of checkpoints/best-<step>, or its directory where they are sharded.

    Raises CheckpointError when a file of it is not as it was written.
    """
    best = best_path(root, step)
    if (best / "config.json").is_file():
        return load_model(best).state_dict()
    if damage := find_damage(best):
        raise CheckpointError(
            f"{best}: {damage}, and these are the weights to publish. The last ones are in {_checkpoints(root)[-1]}; "
            "with keep=last the same command publishes those"
        )
    return best if (best / SHARDS).is_dir() else load_model(best / "model").state_dict()


def load_checkpoint(directory: Path, model: nn.Module, optimizer: Any, accelerator: Accelerator) -> dict[str, Any]:
    """Fill a prepared model and optimizer; returns state.json. Every rank must call this."""
    moments = directory / "optimizer.safetensors"
    try:
        if (directory / SHARDS).is_dir():
            with Shards(directory) as shards:
                restore_fragments(model, optimizer, shards)
        else:
            source = load_model(directory / "model")
            restore_state(model, optimizer, source.state_dict(), load_file(str(moments)))
        if accelerator.scaler is not None and (directory / "scaler.json").is_file():
            accelerator.scaler.load_state_dict(json.loads((directory / "scaler.json").read_text()))
        state = read_json(directory / "state.json")
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise CheckpointError(f"{directory / 'state.json'}: names no step. {AWAY}")
        return state
    except SafetensorError as error:
        raise CheckpointError(f"{moments}: unreadable ({error}). {AWAY}") from None
    except (ValueError, RuntimeError, KeyError) as error:
        if hasattr(error, "exit_code"):
            raise
        raise CheckpointError(f"{directory}: does not fit this run ({error}). {AWAY}") from None
