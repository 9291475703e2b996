"""Checkpoints on disk: atomic directories with a hash manifest; weights as a Hugging Face directory, no pickles.

checkpoints/step-00000100/
    model/                 Hugging Face directory, fp32
    optimizer.safetensors  "<parameter>/<state>", whole tensors whatever the number of ranks or ZeRO stage
    scaler.json            state of the loss scaler, in fp16 only
    state.json             step, elapsed seconds, best evaluation so far
    manifest.json          metadata of the run, size and sha256 of every file above, and its own sha256; written last
checkpoints/best-00000080/ model/ and manifest.json: the weights of the best evaluation
checkpoints/damaged-*      found damaged and set aside
With checkpoint=sharded, shards/ (shard_files.py) replaces model/ and optimizer.safetensors in both.
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
from torch import Tensor, nn

from mini_llm.engine.checkpoint.local_shards import restore_local_shards
from mini_llm.engine.checkpoint.shard_files import SHARDS, ShardReader
from mini_llm.engine.distributed.zero import restore_state
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.run.files import atomic_directory, read_json, remove_directory, sha256
from mini_llm.model import Model, load_model, save_model
from mini_llm.model.huggingface.weights import load_tensors, save_tensors

# Raised when a disk is full, read-only or broken.
DISK_ERRORS = (OSError, SafetensorError)

# save_extras(directory): writes the tokenizer and whatever else belongs into a model directory.
SaveExtras = Callable[[Path], None]

VERSION = 2
MANIFEST = "manifest.json"
# A manifest takes a few hundred bytes per file.
_MAX_MANIFEST_BYTES = 10 << 20
_BAD_CONTENT = (
    "Its manifest matches, so the files were written with this content: do not trust them. Delete the checkpoint to "
    "resume from the one before it"
)


@dataclass
class Snapshot:
    """Everything a checkpoint holds, in memory. `metadata` describes the run and its launch in the manifest."""

    weights: dict[str, Tensor]
    optimizer_state: dict[str, Tensor]
    state: dict[str, Any]
    scaler: dict[str, Any] | None
    metadata: dict[str, Any]


def step_path(root: Path, step: int) -> Path:
    return root / "checkpoints" / f"step-{step:08d}"


def best_path(root: Path, step: int) -> Path:
    return root / "checkpoints" / f"best-{step:08d}"


def write_checkpoint(root: Path, model: Model, snapshot: Snapshot, save_extras: SaveExtras) -> Path:
    """Write checkpoints/step-<state["step"]>; `model` gives the architecture only.

    Raises OSError or SafetensorError, and leaves nothing behind then.
    """
    step = snapshot.state["step"]
    target = step_path(root, step)
    with atomic_directory(target) as directory:
        save_model(model, directory / "model", snapshot.weights)
        fault_point("save-model")
        save_extras(directory / "model")
        save_tensors(snapshot.optimizer_state, directory / "optimizer.safetensors")
        fault_point("save-optimizer")
        if snapshot.scaler is not None:
            (directory / "scaler.json").write_text(json.dumps(snapshot.scaler) + "\n")
        (directory / "state.json").write_text(json.dumps(snapshot.state, indent=2) + "\n")
        fault_point("save-state")
        write_manifest(directory, {"step": step, **snapshot.metadata})
        fault_point("save-manifest")
    return target


def write_best(root: Path, model: Model, step: int, weights: dict[str, Tensor], save_extras: SaveExtras) -> None:
    """Write checkpoints/best-<step>. Raises OSError or SafetensorError."""
    with atomic_directory(best_path(root, step)) as directory:
        save_model(model, directory / "model", weights)
        fault_point("best-model")
        save_extras(directory / "model")
        write_manifest(directory, {"step": step})


def write_manifest(
    directory: Path, metadata: Mapping[str, Any], entries: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """Write manifest.json for the files below `directory`; `entries`: those already hashed by their writers."""
    known = entries or {}
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    hashed = {
        name: {"size": files[name].stat().st_size, "sha256": sha256(files[name])} for name in files.keys() - known
    }
    listed = dict(sorted({**known, **hashed}.items()))
    (directory / MANIFEST).write_text(_manifest_text({"version": VERSION, **metadata, "files": listed}))


def _manifest_text(content: dict[str, Any]) -> str:
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=2) + "\n"


def read_manifest(directory: Path) -> dict[str, Any]:
    """The verified content of a checkpoint's manifest. Raises CheckpointError when it is unreadable or damaged."""
    path = directory / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("too large")
        text = path.read_text()
        content = json.loads(text)
        version, entries = content["version"], content["files"]
        if version > VERSION:
            raise CheckpointError(
                f"{MANIFEST}: version {version} was written by a newer release; this one reads up to {VERSION}"
            )
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
    """What is wrong with a checkpoint, naming the file, or None when everything matches the manifest."""
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
        return f"{added[0]} is not listed in the manifest"
    if "step" in content and content["step"] != int(directory.name.rpartition("-")[2]):
        return f"{MANIFEST} belongs to step {content['step']}"
    return None


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


def latest_checkpoint(root: Path, log: Callable[[str], None], set_aside: bool = False) -> Path | None:
    """The newest checkpoint whose files, and whose best weights, are all intact; None when there is no checkpoint.

    If no intact checkpoint has its best weights, the newest intact one is returned without them. `log` gets a line for
    each checkpoint passed over; `set_aside` renames those to damaged-*. Raises CheckpointError when there are
    checkpoints but none is intact: the user must ask for a fresh start.
    """
    damaged, without_best = [], []
    chosen = None
    for directory in reversed(_checkpoints(root)):
        if (damage := find_damage(directory)) is not None:
            log(f"{directory}: {damage}; trying the checkpoint before it")
            damaged.append(directory)
        elif (damage := damage_of_best(root, _best_step(directory))) is not None:
            log(f"{directory}: {damage}; looking for an older checkpoint with its best weights")
            without_best.append(directory)
        else:
            chosen = directory
            break
    if chosen is None and without_best:
        chosen = without_best[0]
        log(f"{chosen}: resuming without the best weights so far")
    if chosen is None:
        if damaged:
            raise CheckpointError(f"{root}: no checkpoint is intact. To start over, delete {root} or use RUN=new-name")
        return None
    if set_aside:
        # They are newer than the chosen one and occupy the names of the checkpoints to come.
        for directory in (path for path in (*damaged, *without_best) if path.name > chosen.name):
            _set_aside(directory)
    return chosen


def remove_old(root: Path, keep_last: int) -> None:
    """Remove all checkpoints but the newest `keep_last`, and best weights that none of those names."""
    found = _checkpoints(root)
    for old in found[:-keep_last]:
        remove_directory(old)
        fault_point("save-pruned")
    steps = [_best_step(path) for path in found[-keep_last:]]
    named = {best_path(root, step) for step in steps if step is not None}
    for old in (root / "checkpoints").glob("best-*"):
        if old not in named:
            remove_directory(old)


def has_checkpoint(root: Path) -> bool:
    """Whether a run has checkpoints: its first weights will be replaced by those of one of them."""
    return bool(_checkpoints(root))


def _checkpoints(root: Path) -> list[Path]:
    return sorted(path for path in (root / "checkpoints").glob("step-*") if path.name[5:].isdigit())


def _best_step(directory: Path) -> int | None:
    state = read_json(directory / "state.json")
    step = state.get("best_step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else None


def _set_aside(directory: Path) -> None:
    aside = directory.with_name(f"damaged-{directory.name}")
    for number in range(2, 1000):
        if not aside.exists():
            break
        aside = directory.with_name(f"damaged-{directory.name}-{number}")
    os.rename(directory, aside)


def load_best(root: Path, step: int) -> dict[str, Tensor] | Path:
    """The weights of checkpoints/best-<step>, or its directory when they are sharded.

    Raises CheckpointError when a file is damaged.
    """
    best = best_path(root, step)
    if (best / "config.json").is_file():
        return load_model(best).state_dict()
    if damage := find_damage(best):
        raise CheckpointError(
            f"{best}: {damage}, so the best weights cannot be exported. The last weights are in "
            f"{_checkpoints(root)[-1]}: run the same command with load_best=false to export those"
        )
    return best if (best / SHARDS).is_dir() else load_model(best / "model").state_dict()


def load_checkpoint(directory: Path, model: nn.Module, optimizer: Any, accelerator: Accelerator) -> dict[str, Any]:
    """Restore a prepared model and optimizer; returns the content of state.json. Every rank must call this.

    Raises CheckpointError when the checkpoint does not match them.
    """
    optimizer_file = directory / "optimizer.safetensors"
    try:
        if (directory / SHARDS).is_dir():
            with ShardReader(directory) as reader:
                restore_local_shards(model, optimizer, reader)
        else:
            source = load_model(directory / "model")
            restore_state(model, optimizer, source.state_dict(), load_tensors(optimizer_file))
        if accelerator.scaler is not None and (directory / "scaler.json").is_file():
            accelerator.scaler.load_state_dict(json.loads((directory / "scaler.json").read_text()))
        state = read_json(directory / "state.json")
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise CheckpointError(f"{directory / 'state.json'}: has no integer 'step'. {_BAD_CONTENT}")
        return state
    except SafetensorError as error:
        raise CheckpointError(f"{optimizer_file}: unreadable ({error}). {_BAD_CONTENT}") from None
    except (ValueError, RuntimeError, KeyError) as error:
        if hasattr(error, "exit_code"):
            raise
        raise CheckpointError(f"{directory}: does not match this run ({error}). {_BAD_CONTENT}") from None
