"""The record of a run: files that are the truth, mirrored to Weights & Biases.

    metrics.jsonl    {"step": 10, "train/loss": 3.2, ...}   values that the same run gives again, bit for bit
    timing.jsonl     {"step": 10, "tokens_per_second": ...} values that it does not
    summary.json     final figures, merged over launches
    tables/NAME.json {"name", "step", "columns", "rows"}
    artifacts.jsonl  {"name", "kind", "path", "sha256", "files", "metadata"}

A number that is not finite is null in every file. W&B gets it as it is.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mini_llm.engine.run.environment import redact_tree
from mini_llm.engine.run.files import plain, read_json, sha256, write_json
from mini_llm.engine.run.jsonl import JsonLines, read_rows
from mini_llm.engine.run.wandb_mirror import STEP, WandbMirror, resolve_mode
from mini_llm.engine.settings import TrackingConfig


class Tracker:
    """Record one launch of a run; a context manager. Ranks other than the main one record nothing.

    Trouble with W&B or a full disk is said once and never raised. `run_config` is the resolved configuration as plain
    values; `job_type` is the stage: "tokenizer", "pretrain" or "finetune".
    """

    def __init__(
        self,
        directory: Path | str,
        config: TrackingConfig,
        job_type: str,
        run_config: Mapping[str, Any],
        main_process: bool = True,
    ):
        self.directory = Path(directory)
        self.main_process = main_process
        self.job_type = job_type
        self._warned = False
        self._files: dict[str, JsonLines] = {}
        self._mirror: WandbMirror | None = None
        if not main_process:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._guard(self._open_files)
        mode = resolve_mode(config.wandb)
        if mode != "disabled":
            self._mirror = WandbMirror(
                self.directory, mode, config.project, config.group, config.tags, job_type, plain(run_config)
            )

    def log(self, step: int, metrics: Mapping[str, Any], timing: Mapping[str, Any] | None = None) -> None:
        """Record `metrics` (deterministic numbers, named like "train/loss") and `timing` (all others) at `step`."""
        if not self.main_process:
            return
        if metrics:
            self._append("metrics", {"step": step, **metrics})
        if timing:
            self._append("timing", {"step": step, **timing})
        if self._mirror is not None:
            clock = {name if "/" in name else f"timing/{name}": value for name, value in (timing or {}).items()}
            self._mirror.log({name: _number(value) for name, value in {STEP: step, **metrics, **clock}.items()})

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int | None = None) -> None:
        """Write tables/NAME.json, in place of an earlier one of that name."""
        if not self.main_process:
            return
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"table name {name!r}: letters, digits, _ and - only")
        content = {"name": name, "step": step, "columns": list(columns), "rows": plain(rows)}
        self._guard(lambda: self._write_table(content))
        if self._mirror is not None:
            self._mirror.table(name, content["columns"], content["rows"], step)

    def alert(self, title: str, text: str) -> None:
        """Tell whoever follows the run on W&B."""
        if self._mirror is not None:
            self._mirror.alert(title, text)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Merge final figures into summary.json. The keys that reports read are listed in mini_llm/engine/report/page.py."""
        if not self.main_process:
            return
        path = self.directory / "summary.json"
        merged = {**(read_json(path) or {}), "job_type": self.job_type, **plain(redact_tree(dict(values)))}
        self._guard(lambda: write_json(path, merged))
        if self._mirror is not None:
            self._mirror.summary(plain(values))

    def artifact(self, name: str, kind: str, path: Path | str, metadata: Mapping[str, Any] | None = None) -> None:
        """Record a file, or all files of a directory, with the sha256 of each, and log it as a W&B artifact.

        The files must stay as they are. `kind` is "tokenizer", "dataset" or "model".
        """
        if not self.main_process:
            return
        path = Path(path)
        files = {path.name: path} if path.is_file() else _regular_files(path)
        hashes = {inside: {"size": file.stat().st_size, "sha256": sha256(file)} for inside, file in files.items()}
        whole = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
        inside_run = path.resolve().is_relative_to(self.directory.resolve())
        record = {
            "name": name,
            "kind": kind,
            "path": path.resolve().relative_to(self.directory.resolve()).as_posix() if inside_run else str(path),
            "sha256": hashes[path.name]["sha256"] if path.is_file() else whole,
            "files": hashes,
            "metadata": plain(redact_tree(dict(metadata or {}))),
        }
        if record not in read_rows(self.directory / "artifacts.jsonl"):
            self._append("artifacts", record)
        if self._mirror is not None:
            extra = {"sha256": record["sha256"], "files": hashes}
            self._mirror.artifact(name, kind, files, {**record["metadata"], **extra})

    def rewind(self, step: int) -> None:
        """On resume from a checkpoint at `step`: drop what was recorded after it, so that no step appears twice."""
        for name in ("metrics", "timing"):
            if name in self._files:
                self._guard(lambda name=name: self._files[name].rewind(step))

    def sync(self) -> None:
        """Wait until the rows are on disk: called before a checkpoint is published, which must not be ahead of them."""
        for file in self._files.values():
            self._guard(file.sync)

    def finish(self, exit_code: int = 0) -> None:
        """Close the files and the W&B run. Calling it twice is fine."""
        for file in self._files.values():
            self._guard(file.close)
        self._files = {}
        if self._mirror is not None:
            self._mirror.finish(exit_code)
            self._mirror = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(_exit_code(error))

    def _open_files(self) -> None:
        for name in ("metrics", "timing", "artifacts"):
            self._files[name] = JsonLines(self.directory / f"{name}.jsonl")

    def _write_table(self, content: dict[str, Any]) -> None:
        folder = self.directory / "tables"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{content['name']}.json", content)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if name in self._files:
            self._guard(lambda: self._files[name].append(row))

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            if not self._warned:
                self._warned = True
                print(
                    f"{self.directory}: the record of the run is incomplete ({error.strerror or error}); "
                    "the run goes on",
                    file=sys.stderr,
                    flush=True,
                )


def _regular_files(directory: Path) -> dict[str, Path]:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such file or directory to record")
    found = sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(directory).as_posix(): path for path in found}


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
    if code is None:
        return 0
    return code if isinstance(code, int) else 1
