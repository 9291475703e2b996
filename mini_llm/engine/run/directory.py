"""The directory of one run: its lock, its configuration, and whether it is finished.

runs/<name>/ requested.yaml   the configuration as requested; a resumed run must request the same
             config.yaml      the configuration as used: the requested one with every choice filled in
             command.txt      every command that ran here, with its time
             environment.json machine, versions and code of the latest launch, and how they changed
             inputs.json      hashes of what the paths of the configuration hold
             finished.json    present when the run is complete, with its scores
             lock.json        process and host of a live run (`.lock` is the lock itself)

Runs of earlier releases have no requested.yaml, and old names in config.yaml: both are read as such.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from mini_llm.engine.config import read_yaml
from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.run.comparison import compare, describe_changes, environment_changes, flatten, show, under
from mini_llm.engine.run.environment import command_line, describe_environment, redact_tree
from mini_llm.engine.run.files import open_regular, read_json, remove_leftovers, write_atomic, write_json
from mini_llm.engine.run.inputs import FILE as INPUTS
from mini_llm.engine.run.inputs import Input, describe_inputs
from mini_llm.engine.run.key_names import translate
from mini_llm.engine.run.state import SUFFIX, Environment, Finished, read_object, read_state, say, set_aside

# Never affects what is learned: a run may be resumed with other values.
ALWAYS_HARMLESS = ("tracking",)

_BOOKKEEPING = {
    ".lock",
    "lock.json",
    "config.yaml",
    "requested.yaml",
    "command.txt",
    "environment.json",
    INPUTS,
    "report.html",
    "choices.json",
    "wandb",
    "wandb.json",
}
# Written before the first step, too.
_BEFORE_TRAINING = {"data.json", "plan.json", "start.json"}
# Endings of the files of a run, and its folders.
_SUFFIXES = {".json", ".jsonl", ".yaml", ".txt", ".html"}
_FOLDERS = {"checkpoints", "model", "tables", "teacher"}


def find_model(path: Path) -> Path | None:
    """The model directory at `path`: itself, or the model/ folder of a run; None when neither holds a config.json."""
    return next((place for place in (path, path / "model") if (place / "config.json").is_file()), None)


def now() -> str:
    """The local time with its offset, to the second (ISO 8601)."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")


class RunDirectory:
    """Create or reopen the directory of a run and lock it until `close`; a context manager.

    Only the main process locks and writes; other ranks (`main_process=False`) read. Raises ConfigError if the directory
    is not a run, cannot be written, or is locked by a live run. A lock left by a killed run is taken over.
    """

    def __init__(self, path: Path | str, main_process: bool = True):
        self.path = Path(path)
        self.main_process = main_process
        self._lock: FileLock | None = None
        self._started = time.monotonic()
        self._made = not self.path.exists()
        if not main_process:
            return
        self._refuse_foreign_directory()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire()
            remove_leftovers(self.path)
            self._set_aside_irregular()
        except OSError as error:
            self.close()
            raise self._cannot_write(error) from None

    @property
    def model(self) -> Path:
        """The trained model, a Hugging Face directory."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, step-00000100/ and so on."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> dict[str, Any] | None:
        """What `finish` recorded ({"finished", "seconds", "scores"}), or None before the end of the run."""
        found = read_state(self.path / "finished.json", Finished, aside=self.main_process)
        return None if found is None else found.model_dump()

    def compare_config(self, config: Mapping[str, Any], harmless: Iterable[str] = ()) -> list[str]:
        """Compare `config` (plain values) with the configuration that this run was started with.

        `harmless` lists dotted keys or sections that may change between launches, besides ALWAYS_HARMLESS; each such
        change gives a note. Any other change raises ConfigError, unless the directory holds no work yet. Requesting a
        value that the run has chosen itself is not a change.
        """
        used, requested = self._read_config("config.yaml"), self._read_config("requested.yaml")
        if requested is None and any(self.path.glob(f"requested.yaml{SUFFIX}*")):
            return [f"{self.path}: goes on with the configuration of this command; the one it began with is damaged"]
        if requested is None and used is None:
            return []
        used = flatten(used or {})
        old, new = used if requested is None else flatten(requested), flatten(_plain(config))
        before = read_state(self.path / INPUTS, dict[str, Input], aside=self.main_process)
        inputs = describe_inputs(new, before)
        # A run of an earlier release has no record: what its paths hold today stands for it.
        found = compare(old, used, new, (*ALWAYS_HARMLESS, *harmless), before or describe_inputs(old), inputs)
        trained = self.finished is not None or any(self.checkpoints.glob("step-*"))
        if before is None and trained and self.finished is None:
            # Moved data of such a run: the training loop compares them with the fingerprint in the checkpoint.
            found.harmful = [key for key in found.harmful if not (_is_gone(old.get(key)) and new.get(key) in inputs)]
        lines = [f"  {key}: {show(key, old)} -> {show(key, new)}" for key in found.harmful]
        if found.harmful and self._holds_work():
            longer = "max_steps" in found.harmful or "budget" in found.harmful
            raise ConfigError(
                f"{self.path}: this run was started with another configuration:\n" + "\n".join(lines) + "\n"
                "Keep both: choose another name (RUN=another-name, or --run another-name). "
                + f"To train its model further: --init {self.path} and another name. " * longer
                + f"Or start over: delete {self.path}"
            )
        if found.changed and trained:
            path, one, two = found.changed[0]
            raise CheckpointError(
                f"{self.path}: this run was trained with other data: {path} has changed (data_fingerprint was "
                f"{one[:16]}, is now {two[:16]}). Restore it, or start a new run with RUN=new-name; --init begins with "
                "these weights"
            )
        if found.harmful:
            return [f"{self.path}: nothing was trained here yet; starting with the new configuration:", *lines]
        return [f"{self.path}: {note}" for note in (*found.notes, *self._environment_notes())]

    def _environment_notes(self) -> list[str]:
        """What has changed on the machine or in the code since the last launch, if the run resumes."""
        before = read_object(self.path / "environment.json", Environment)
        if not before or self.finished is not None or not any(self.checkpoints.glob("step-*")):
            return []
        changes = environment_changes(before, describe_environment())
        return [describe_changes(changes)] if changes else []

    def _read_config(self, name: str) -> dict[str, Any] | None:
        """A configuration file under today's keys; None if it is missing, or damaged and therefore set aside."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return translate(read_yaml(path))
        except ConfigError as error:
            say(f"{error}; {set_aside(path) if self.main_process else 'it is left out'}")
            return None

    def requested(self) -> dict[str, Any]:
        """The configuration as requested, under today's keys. Raises ConfigError when there is none."""
        found = self._read_config("requested.yaml")
        return translate(read_yaml(self.path / "config.yaml")) if found is None else found

    def record(self, config: Mapping[str, Any], stage: str | None = None) -> None:
        """Write requested.yaml and config.yaml, add the command to command.txt, and write environment.json."""
        if not self.main_process:
            return
        try:
            self._record(config, stage)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _record(self, config: Mapping[str, Any], stage: str | None) -> None:
        self._write_yaml("requested.yaml", config)
        self._write_yaml("config.yaml", config)
        commands, earlier = self.path / "command.txt", ""
        if commands.is_file():
            with open_regular(commands) as file:
                earlier = file.read().decode("utf-8", "replace")
        write_atomic(commands, f"{earlier}# {now()}\n{command_line()}\n")
        inputs = describe_inputs(flatten(_plain(config)))
        write_json(self.path / INPUTS, {path: vars(found) for path, found in inputs.items()})
        before, environment = read_object(self.path / "environment.json", Environment), describe_environment()
        earlier = before.get("changes")
        history: list[Any] = earlier if isinstance(earlier, list) else []
        if before and (changes := environment_changes(before, environment)):
            history = [*history, {"time": now(), **{key: f"{old} -> {new}" for key, (old, new) in changes.items()}}]
        tree = {"stage": stage, **environment} | ({"changes": history} if history else {})
        write_json(self.path / "environment.json", redact_tree(tree))

    def as_requested(self, config: Mapping[str, Any], harmless: Iterable[str] = ()) -> dict[str, Any]:
        """`config`, but keys that repeat a choice of this run get their requested value ("auto", null) back.

        So a run resumes in the same way when its own config.yaml is given to it. Keys in `harmless` stay as they are.
        """
        found = self._read_config("config.yaml")
        if found is None:
            return _plain(config)
        old, used = flatten(self.requested()), flatten(found)

        def restore(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
            restored = {}
            for name, value in tree.items():
                key = f"{prefix}{name}"
                if isinstance(value, dict) and value:
                    restored[name] = restore(value, f"{key}.")
                else:
                    chosen = key in old and value != old[key] and value == used.get(key)
                    restored[name] = old[key] if chosen and not under(key, harmless) else value
            return restored

        return restore(_plain(config), "")

    def resolve(self, config: Mapping[str, Any]) -> None:
        """Replace values of config.yaml by those that the run has chosen. `config`: any of the top-level keys."""
        if not self.main_process or not (self.path / "config.yaml").is_file():
            return
        try:
            self._write_yaml("config.yaml", {**read_yaml(self.path / "config.yaml"), **config})
        except OSError as error:
            raise self._cannot_write(error) from None

    def _write_yaml(self, name: str, config: Mapping[str, Any]) -> None:
        write_atomic(self.path / name, yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))

    def finish(self, scores: Mapping[str, Any]) -> None:
        """Mark the run complete, so that the same command does nothing. Call it last, when all else is on disk."""
        if self.main_process:
            seconds = round(time.monotonic() - self._started, 1)
            write_json(self.path / "finished.json", {"finished": now(), "seconds": seconds, "scores": scores})

    def describe_finished(self) -> str:
        """One line that says that the run is complete, with its scores."""
        record = self.finished or {}
        scores = record.get("scores", {})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, (int, float)))
        return (
            f"{self.path}: finished {record.get('finished', '')}{f' ({shown})' if shown else ''}. Nothing to do. "
            f"To train again choose another RUN=name, or delete {self.path}"
        )

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            (self.path / "lock.json").unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.main_process and self._made and not self._holds_work():
            shutil.rmtree(self.path, ignore_errors=True)  # a start that failed leaves no run behind
        self.close()

    def _cannot_write(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.path}: cannot write there ({error.strerror or error}). "
            "Make it writable or make room, or run from a directory where you can write (runs/ is made there)"
        )

    def _refuse_foreign_directory(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; a run needs a directory. Choose another name (RUN=...)")
        if not self.path.is_dir():
            return
        entries = {entry.name for entry in self.path.iterdir()}
        if entries and not entries & _BOOKKEEPING:
            raise ConfigError(
                f"{self.path}: contains files but is not a run directory (no config.yaml). "
                "Choose another name (RUN=...)"
            )

    def _set_aside_irregular(self) -> None:
        """Rename what is not a file or not a folder but has the name of one, so that it can be written."""
        for path in (*self.path.iterdir(), *(self.path / "tables").glob("*")):
            irregular = path.suffix in _SUFFIXES and path.exists() and not path.is_file()
            if irregular or (path.name in _FOLDERS and not path.is_dir()):
                say(f"{path}: not a {'regular file' if irregular else 'folder'}; {set_aside(path)}")

    def _acquire(self) -> FileLock:
        # The operating system releases the lock of a killed process, and the library closes it in forked children, so a
        # lock.json that is left over does not matter.
        lock = FileLock(self.path / ".lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            owner = self._owner()
            raise ConfigError(
                f"{self.path}: another run is using it (process {owner.get('pid', '?')} on "
                f"{owner.get('host', '?')}, since {owner.get('since', '?')}). "
                "Wait for it, stop it, or choose another name (RUN=...)"
            ) from None
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        write_json(self.path / "lock.json", owner)
        return lock

    def _owner(self) -> dict[str, Any]:
        # The owner writes lock.json just after taking the lock.
        for _ in range(20):
            owner = read_json(self.path / "lock.json")
            if isinstance(owner, dict) and owner:
                return owner
            time.sleep(0.05)
        return {}

    def _holds_work(self) -> bool:
        for entry in self.path.iterdir():
            if entry.name in _BOOKKEEPING | _BEFORE_TRAINING or entry.name.startswith("."):
                continue
            if any(entry.iterdir()) if entry.is_dir() else entry.stat().st_size:
                return True
        return False


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree as read back from YAML (tuples become lists), without secrets."""
    return redact_tree(yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(dict(config))), sort_keys=False)))


def _is_gone(value: Any) -> bool:
    """Whether a path of the configuration no longer exists."""
    return isinstance(value, str) and not Path(os.path.expanduser(value)).exists()
