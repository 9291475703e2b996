"""The record of a run: its files, with a copy in Weights & Biases.

    metrics.jsonl    {"step": 10, "train/loss": 3.2, ...}    bit-identical when the run is repeated
    timing.jsonl     {"step": 10, "tokens_per_second": ...}  different each time
    summary.json     final figures, merged over launches
    layers.jsonl     {"step": 20, "grad_norm/decoder.blocks.0": 0.1, ...}, if tracking.norms_every is set
    tables/NAME.json {"name", "step", "columns", "rows"}
    artifacts.jsonl  {"name", "kind", "path", "sha256", "files", "metadata"}

Files store a non-finite number as null; W&B gets it unchanged.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mini_llm.engine.run.environment import redact_tree
from mini_llm.engine.run.files import plain, sha256, write_json
from mini_llm.engine.run.jsonl import JsonLines, read_rows
from mini_llm.engine.run.signals import Interrupted
from mini_llm.engine.run.state import Summary, Table, read_object, read_state
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.wandb_mirror import STEP, Histogram, WandbMirror, resolve_mode
from mini_llm.engine.tracking.wandb_runs import run_of

SAMPLES, SAMPLE_CHARACTERS = "validation_samples", 400


class Tracker:
    """Records one launch of a run; a context manager. Ranks with `main_process=False` record nothing.

    job_type: the stage, such as "pretrain". run_config: the resolved configuration as plain values. apart: W&B gets a
    new run, for work with a finished run such as generating texts; the W&B run of the directory stays as it is.
    start: the model directory from which the run starts, which is an input of the W&B run and gives it its group.
    A full disk or a problem with W&B is reported once and never raised.
    """

    # Whether the model that is recorded next has the best weights of the run, which gives it the alias "best" in W&B.
    has_best_weights = False

    def __init__(
        self,
        directory: Path | str,
        config: TrackingConfig,
        job_type: str,
        run_config: Mapping[str, Any],
        main_process: bool = True,
        apart: bool = False,
        start: Path | None = None,
    ):
        self.directory, self.job_type, self.main_process = Path(directory), job_type, main_process
        self.settings = config
        self._warned = False
        self._files: dict[str, JsonLines] = {}
        self._mirror: WandbMirror | None = None
        if not main_process:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._guard(self._open_files)
        mode = resolve_mode(config.wandb)
        if mode != "disabled":
            self._mirror = WandbMirror(self.directory, mode, config, job_type, plain(run_config), apart, start)
            if start is not None:
                self.uses(run_of(start).name, "model", start)

    def config(self, values: Mapping[str, Any]) -> None:
        """Replace values of the configuration that W&B shows: those chosen after the start of the run."""
        if self._mirror is not None:
            self._mirror.config(plain(values))

    def log(self, step: int, metrics: Mapping[str, Any], timing: Mapping[str, Any] | None = None) -> None:
        """Record reproducible numbers in `metrics` (named like "train/loss") and all others in `timing`."""
        if not self.main_process:
            return
        timing = timing or {}
        for name, values in (("metrics", metrics), ("timing", timing)):
            if values:
                self._append(name, {"step": step, **values})
        if self._mirror is not None:
            timing = {name if "/" in name else f"timing/{name}": value for name, value in timing.items()}
            row = {STEP: step, **metrics, **timing}
            if row.pop("train/clm", False):
                # W&B draws one curve per name, and the losses of two objectives do not compare.
                row["train/clm_loss"] = row.pop("train/loss")
            self._mirror.log({name: getattr(value, "item", lambda value=value: value)() for name, value in row.items()})

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int | None = None) -> None:
        """Write tables/NAME.json, replacing an earlier table of that name. Raises ValueError for a bad name."""
        if not self.main_process:
            return
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"table name {name!r}: use letters, digits, _ and - only")
        content = {"name": name, "step": step, "columns": list(columns), "rows": plain(rows)}
        self._guard(lambda: self._write_table(content))
        if self._mirror is not None:
            self._mirror.table(name, content["columns"], content["rows"], step)

    def samples(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        """Add rows with their step to tables/validation_samples.json, a table over the evaluations of the run.

        Texts are cut to SAMPLE_CHARACTERS.
        """
        if not self.main_process:
            return
        earlier = self._samples_up_to(step - 1)
        cut = [[cell[:SAMPLE_CHARACTERS] if isinstance(cell, str) else cell for cell in row] for row in rows]
        self.table(SAMPLES, ["step", *columns], [*earlier, *([step, *row] for row in cut)], step)

    def _samples_up_to(self, step: int) -> list[list[Any]]:
        found = read_state(self.directory / "tables" / f"{SAMPLES}.json", Table)
        return [row for row in found.rows if isinstance(row[0], int) and row[0] <= step] if found else []

    def layers(self, step: int, norms: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Record norms by layer, and histograms as (counts, lower edge, upper edge) of bins of equal width."""
        if not self.main_process:
            return
        drawn = {name: {"counts": c, "low": low, "high": high} for name, (c, low, high) in histograms.items()}
        self._append("layers", {"step": step, **norms, **drawn})
        if self._mirror is not None:
            self._mirror.layers(step, dict(norms), dict(histograms))

    def best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of the best evaluation so far in W&B's summary; summary.json gets them at the end."""
        if self._mirror is not None:
            self._mirror.summary({"best": {"step": step, **plain(metrics)}})

    def alert(self, title: str, text: str) -> None:
        """Send a W&B alert."""
        if self._mirror is not None:
            self._mirror.alert(title, text)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Merge final figures into summary.json. mini_llm/engine/report/page.py lists the keys that reports read."""
        if not self.main_process:
            return
        path = self.directory / "summary.json"
        earlier = read_object(path, Summary, aside=True)
        merged = {**earlier, "job_type": self.job_type, **plain(redact_tree(values))}
        self._guard(lambda: write_json(path, merged))
        if self._mirror is not None:
            self._mirror.summary(plain(values))

    def artifact(self, name: str, kind: str, path: Path | str, metadata: Mapping[str, Any] | None = None) -> None:
        """Record a file, or every file of a directory, with its sha256, and log it as a W&B artifact.

        kind: "tokenizer", "model", or "dataset", which is an input of the W&B run. The files must not change
        afterwards, since W&B does not copy them. Raises FileNotFoundError.
        """
        if not self.main_process:
            return
        found = self._describe_artifact(name, kind, Path(path), metadata or {})
        if found[0] not in read_rows(self.directory / "artifacts.jsonl"):
            self._append("artifacts", found[0])
        if self._mirror is not None and kind == "dataset":
            self._mirror.uses(lambda: found)
        elif self._mirror is not None:
            best = kind == "model" and self.has_best_weights
            self._mirror.artifact(lambda: found, ["best"] if best else [])

    def uses(self, name: str, kind: str, path: Path | str) -> None:
        """Link the W&B run to the artifact of these files, which the run that wrote them has logged."""
        if self._mirror is not None:
            self._mirror.uses(lambda: self._describe_artifact(name, kind, Path(path), {}))

    def _describe_artifact(
        self, name: str, kind: str, path: Path, metadata: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Path]]:
        """The row of artifacts.jsonl, and the files by their names in the artifact."""
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
            "metadata": plain(redact_tree(metadata)),
        }
        return record, files

    def rewind(self, step: int) -> None:
        """Drop what was recorded after `step`, the checkpoint a run resumes from, so that no step appears twice."""
        for name in ("metrics", "timing", "layers"):
            if name in self._files:
                self._guard(lambda name=name: self._files[name].rewind(step))

    def sync(self) -> None:
        """Wait until the rows are on disk. Call it before a checkpoint, which must not be newer than the rows."""
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Interrupted):
            self.alert("Interrupted", str(error))
        self.finish(_exit_code(error))

    def _open_files(self) -> None:
        by_layer = ["layers"] if self.settings.by_layer or (self.directory / "layers.jsonl").exists() else []
        for name in ("metrics", "timing", "artifacts", *by_layer):
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
                reason = error.strerror or error
                message = f"{self.directory}: the record of the run is incomplete ({reason}); the run continues"
                print(message, file=sys.stderr, flush=True)


def _regular_files(directory: Path) -> dict[str, Path]:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such file or directory to record")
    found = sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(directory).as_posix(): path for path in found}


def _exit_code(error: BaseException | None) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1 if error else 0)
    return code if isinstance(code, int) else int(code is not None)
