"""The directory of one run: who holds it, what it was started with, and whether it is finished.

runs/<name>/ config.yaml      the resolved configuration
             command.txt      every command that ran here, with its time
             environment.json machine, versions and commit of the latest launch
             finished.json    present when the run is complete, with its scores
             lock.json        process and host while a run is live (`.lock` is the lock itself)
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

# Changing these never changes what is learned, so a run continues under the new value.
ALWAYS_HARMLESS = ("tracking",)

_BOOKKEEPING = {
    ".lock",
    "lock.json",
    "config.yaml",
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
    """Create or reopen the directory of a run and hold it until `close`; a context manager.

    Only the main process writes and locks; other ranks (`main_process=False`) read. Raises ConfigError when the
    directory belongs to something else, cannot be written, or is held by a live run. A lock left by a killed run is
    taken over.
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
        """Where the trained model lies, as a Hugging Face directory."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where step-00000100/ and its siblings lie."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> dict[str, Any] | None:
        """What `finish` recorded ({"finished", "seconds", "scores"}), or None while there is training left."""
        return read_json(self.path / "finished.json")

    def compare_config(self, config: Mapping[str, Any], harmless: Iterable[str] = ()) -> list[str]:
        """Compare the resolved `config` (plain values) with the one this run was started with.

        `harmless` lists dotted keys or sections that may change between launches, beside ALWAYS_HARMLESS; each change
        of one gives a note. Any other change raises ConfigError, unless the directory holds no work yet.
        """
        stored = self.path / "config.yaml"
        if not stored.is_file():
            return []
        old, new = _flatten(read_yaml(stored)), _flatten(_plain(config))
        changes = {key: (old.get(key), new.get(key)) for key in [*old, *new] if old.get(key) != new.get(key)}
        allowed = (*ALWAYS_HARMLESS, *harmless)
        harmful = {key: change for key, change in changes.items() if not _under(key, allowed)}
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

    def record(self, config: Mapping[str, Any], stage: str | None = None) -> None:
        """Write config.yaml, add the command to command.txt, and describe machine and stage in environment.json."""
        if not self.main_process:
            return
        try:
            self._record(config, stage)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _record(self, config: Mapping[str, Any], stage: str | None) -> None:
        write_atomic(self.path / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))
        commands = self.path / "command.txt"
        earlier = commands.read_text(encoding="utf-8") if commands.is_file() else ""
        write_atomic(commands, f"{earlier}# {now()}\n{command_line()}\n")
        write_json(self.path / "environment.json", redact_tree({"stage": stage, **describe_environment()}))

    def finish(self, scores: Mapping[str, Any]) -> None:
        """Mark the run complete, so that the same command becomes a no-op. Call it last, when all else is on disk."""
        if self.main_process:
            seconds = round(time.monotonic() - self._started, 1)
            write_json(self.path / "finished.json", {"finished": now(), "seconds": seconds, "scores": scores})

    def describe_finished(self) -> str:
        """One line for a user whose run is complete already."""
        record = self.finished or {}
        scores = record.get("scores", {})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, (int, float)))
        return (
            f"{self.path}: finished {record.get('finished', '')}{f' ({shown})' if shown else ''}. Nothing to do. "
            f"To train again choose another RUN=name, or delete {self.path}"
        )

    def close(self) -> None:
        """Give the directory free for the next run."""
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
                f"{self.path}: holds files but is no run directory (no config.yaml), and a run would mix with them. "
                "Choose another name (RUN=...)"
            )

    def _acquire(self) -> FileLock:
        # The system frees the lock of a process that was killed, and the library closes it in forked children: what is
        # left in lock.json then is taken over.
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
        # The winner writes lock.json just after it takes the lock.
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
    """The tree as YAML gives it back (tuples become lists), without secrets."""
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
