"""The directory of one run: its lock, its configuration, and whether it is finished.

runs/<name>/ requested.yaml   the configuration as requested; a resumed run must request the same
             config.yaml      the configuration as used: the requested one with every choice filled in
             command.txt      every command that ran here, with its time
             environment.json machine, versions and commit of the latest launch
             finished.json    present when the run is complete, with its scores
             lock.json        process and host of a live run (`.lock` is the lock itself)

Runs of earlier releases have no requested.yaml, and old names in config.yaml: both are read as such.
"""

import json
import os
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
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.environment import command_line, describe_environment, redact_tree
from mini_llm.engine.run.files import read_json, remove_leftovers, write_atomic, write_json
from mini_llm.engine.run.key_names import translate

# Never affects what is learned: a run may be resumed with other values.
ALWAYS_HARMLESS = ("tracking",)

_BOOKKEEPING = {
    ".lock",
    "lock.json",
    "config.yaml",
    "requested.yaml",
    "command.txt",
    "environment.json",
    "report.html",
    "choices.json",
    "wandb",
    "wandb.json",
}


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
        if not main_process:
            return
        self._refuse_foreign_directory()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire()
            for directory in (self.path, self.checkpoints, self.path / "tables"):
                remove_leftovers(directory)
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
        return read_json(self.path / "finished.json")

    def compare_config(self, config: Mapping[str, Any], harmless: Iterable[str] = ()) -> list[str]:
        """Compare `config` (plain values) with the configuration that this run was started with.

        `harmless` lists dotted keys or sections that may change between launches, besides ALWAYS_HARMLESS; each such
        change gives a note. Any other change raises ConfigError, unless the directory holds no work yet. Requesting a
        value that the run has chosen itself is not a change.
        """
        if not (self.path / "config.yaml").is_file():
            return []
        old, new = _flatten(self.requested()), _flatten(_plain(config))
        used = _flatten(translate(read_yaml(self.path / "config.yaml")))
        changes = [key for key in dict.fromkeys([*old, *new]) if new.get(key) not in (old.get(key), used.get(key))]
        allowed = (*ALWAYS_HARMLESS, *harmless)
        harmful = [key for key in changes if not _under(key, allowed)]
        lines = [f"  {key}: {_show(key, old)} -> {_show(key, new)}" for key in harmful]
        if harmful and self._holds_work():
            raise ConfigError(
                f"{self.path}: this run was started with another configuration:\n" + "\n".join(lines) + "\n"
                f"Keep both: choose another name (RUN=another-name, or --run another-name). "
                f"Or start over: delete {self.path}"
            )
        if harmful:
            return [f"{self.path}: nothing was trained here yet; starting with the new configuration:", *lines]
        return [f"{self.path}: {key} changed: {_show(key, old)} -> {_show(key, new)}" for key in changes]

    def requested(self) -> dict[str, Any]:
        """The configuration as requested, under today's keys. Raises ConfigError when there is none."""
        stored = self.path / "requested.yaml"
        return translate(read_yaml(stored if stored.is_file() else self.path / "config.yaml"))

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
        commands = self.path / "command.txt"
        earlier = commands.read_text(encoding="utf-8") if commands.is_file() else ""
        write_atomic(commands, f"{earlier}# {now()}\n{command_line()}\n")
        write_json(self.path / "environment.json", redact_tree({"stage": stage, **describe_environment()}))

    def as_requested(self, config: Mapping[str, Any], harmless: Iterable[str] = ()) -> dict[str, Any]:
        """`config`, but keys that repeat a choice of this run get their requested value ("auto", null) back.

        So a run resumes in the same way when its own config.yaml is given to it. Keys in `harmless` stay as they are.
        """
        if not (self.path / "config.yaml").is_file():
            return _plain(config)
        old, used = _flatten(self.requested()), _flatten(translate(read_yaml(self.path / "config.yaml")))

        def restore(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
            restored = {}
            for name, value in tree.items():
                key = f"{prefix}{name}"
                if isinstance(value, dict) and value:
                    restored[name] = restore(value, f"{key}.")
                else:
                    chosen = key in old and value != old[key] and value == used.get(key)
                    restored[name] = old[key] if chosen and not _under(key, harmless) else value
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
            if owner := read_json(self.path / "lock.json"):
                return owner
            time.sleep(0.05)
        return {}

    def _holds_work(self) -> bool:
        for entry in self.path.iterdir():
            if entry.name in _BOOKKEEPING or entry.name.startswith("."):
                continue
            if any(entry.iterdir()) if entry.is_dir() else entry.stat().st_size:
                return True
        return False


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tree as read back from YAML (tuples become lists), without secrets."""
    return redact_tree(yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(dict(config))), sort_keys=False)))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _under(key: str, sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)


def _show(key: str, flat: dict[str, Any]) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(not set)"
