"""A copy of a run's record in Weights & Biases, which can neither fail nor slow the run.

Every W&B call is made by one background thread, in order. What goes wrong there gives one line of warning; the files
that the Tracker writes are the truth, and `wandb sync` sends a run that was kept offline. Facts about W&B 0.31 behind
this file: an offline run cannot be resumed (each launch is one more fragment with the same id), and rows whose W&B step
is smaller than the last are dropped after a rewind, so the step is a metric of its own (`train/step`).
"""

import os
import queue
import re
import secrets
import shlex
import shutil
import string
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mini_llm.engine.run.environment import redact, redact_tree
from mini_llm.engine.run.files import read_json, write_json

INIT_TIMEOUT = 20.0
FINISH_TIMEOUT = 60.0
STEP = "train/step"
_QUEUE_LENGTH = 10_000
_ID_CHARACTERS = string.ascii_lowercase + string.digits


def resolve_mode(configured: str) -> str:
    """ "online", "offline", "disabled", or "auto" (online where a key is found). WANDB_MODE decides for "auto"."""
    if configured != "auto":
        return configured
    chosen = os.environ.get("WANDB_MODE", "").strip().lower()
    names = {"online": "online", "run": "online", "shared": "online", "disabled": "disabled"}
    return names.get(chosen, "offline") if chosen else "auto"


def stable_id(directory: Path, project: str) -> str:
    """The W&B run id of a run directory, kept in wandb.json; WANDB_RUN_ID (a sweep's) names a new one."""
    stored = read_json(directory / "wandb.json")
    if isinstance(stored, dict) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(stored.get("id", ""))):
        return stored["id"]
    # Not from the `random` module, whose state belongs to the training.
    run_id = os.environ.get("WANDB_RUN_ID") or "".join(secrets.choice(_ID_CHARACTERS) for _ in range(8))
    write_json(directory / "wandb.json", {"id": run_id, "project": project})
    return run_id


class WandbMirror:
    """Mirror one launch as one W&B run. Every method returns at once, except `finish`, and none raises."""

    def __init__(
        self,
        directory: Path,
        mode: str,
        project: str,
        group: str | None,
        tags: list[str],
        job_type: str,
        config: Mapping[str, Any],
    ):
        self._directory = directory.resolve()
        self._mode = mode
        # W&B's own variables win, as its users expect.
        self._project = redact_tree(os.environ.get("WANDB_PROJECT") or project)
        self._group = redact_tree(os.environ.get("WANDB_RUN_GROUP") or group)
        self._tags = redact_tree(list(tags))
        self._job_type = job_type
        self._config = redact_tree(dict(config))
        self._calls: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_QUEUE_LENGTH)
        self._exit_code = 0
        self._warned = False
        self._variables: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._set_variables()
        try:
            # Imported here and not in the thread: two threads importing at once can meet half-made modules.
            import wandb  # noqa: F401

            self._id = stable_id(self._directory, self._project)
        except Exception as error:
            _say(f"W&B is not used ({_reason(error)})")
            return
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row, which holds STEP."""
        row = dict(row)
        self._submit(lambda run: run.log(row))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Merge into the run's summary."""
        values = redact_tree(dict(values))
        self._submit(lambda run: run.summary.update(values))

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int | None) -> None:
        """Log a table."""

        def call(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            run.log({name: table} if step is None else {name: table, STEP: step})

        self._submit(call)

    def alert(self, title: str, text: str) -> None:
        """Send an alert, as W&B is set to: by mail or chat."""
        self._submit(lambda run: run.alert(title=title, text=redact(text)))

    def artifact(self, name: str, kind: str, files: Mapping[str, Path], metadata: Mapping[str, Any]) -> None:
        """Log `files` (name inside the artifact -> path) as an artifact. They are referred to in place, not copied."""
        metadata = redact_tree(dict(metadata))

        def call(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name)[:128], type=kind, metadata=metadata)
            for inside, path in files.items():
                artifact.add_file(str(path), name=inside, policy="immutable", skip_cache=True)
            run.log_artifact(artifact)

        self._submit(call)

    def finish(self, exit_code: int) -> None:
        """Send what is left (for FINISH_TIMEOUT seconds at most) and record the exit code."""
        if self._thread is None:
            return
        self._exit_code = exit_code
        deadline = time.monotonic() + INIT_TIMEOUT + FINISH_TIMEOUT + 5
        try:
            self._calls.put(None, timeout=FINISH_TIMEOUT)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._warn(f"W&B does not answer; what it did not get is kept: {self._sync_command()}")
        self._thread = None
        for name, value in self._variables.items():
            if os.environ.get(name) == value:
                del os.environ[name]

    def _set_variables(self) -> None:
        """What W&B reads from the environment alone: staged copies and logs stay in the run, no reports of its own."""
        wanted = {
            "WANDB_CACHE_DIR": str(self._directory / "wandb" / "cache"),
            "WANDB_DATA_DIR": str(self._directory / "wandb" / "data"),
            "WANDB_ERROR_REPORTING": "false",
        }
        self._variables = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(self._variables)

    def _submit(self, call: Callable[[Any], None]) -> None:
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._warn("W&B does not keep up; rows are missing there (metrics.jsonl has them all)")

    def _work(self) -> None:
        try:
            run = self._start()
        except Exception as error:
            _say(f"W&B is not used ({_reason(error)})")
            return
        while (call := self._calls.get()) is not None:
            try:
                call(run)
            except Exception as error:
                self._warn(f"W&B lost a record ({_reason(error)}); the run goes on")
        started = time.monotonic()
        try:
            run.finish(exit_code=self._exit_code)
        except Exception as error:
            self._warn(f"W&B did not finish cleanly ({_reason(error)})")
        if self._mode == "offline":
            _say(f"W&B ran offline. To send this run: {self._sync_command()}")
        elif time.monotonic() - started >= FINISH_TIMEOUT:
            _say(f"W&B could not take all in {FINISH_TIMEOUT:.0f} s. To send the rest: {self._sync_command()}")

    def _start(self) -> Any:
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        if self._mode != "offline" and not self._has_key(wandb):
            if self._mode == "online":
                self._warn("W&B has no key (run `wandb login`, or set WANDB_API_KEY); keeping this run offline")
            self._mode = "offline"
        if self._mode != "offline":
            try:
                run = self._init(wandb, "online")
                self._mode = "online"
                _say(f"W&B: {run.url}")
                return run
            except Exception as error:
                self._warn(f"W&B cannot be reached ({_reason(error)}); keeping this run offline")
                self._mode = "offline"
                # The service still holds the failed run under our id.
                wandb.teardown()
                wandb.setup(settings=wandb.Settings(silent=True))
        return self._init(wandb, "offline")

    def _has_key(self, wandb: Any) -> bool:
        try:
            return bool(wandb.login(prompt=False, verify=False))
        except Exception as error:
            self._warn(f"W&B cannot use the key it found ({_reason(error)}); keeping this run offline")
            return False

    def _init(self, wandb: Any, mode: str) -> Any:
        arguments = sys.argv[1:]
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_save_requirements=False,
            # The record of the machine holds the command's arguments: leave it out when one of them is a secret.
            x_disable_meta=redact_tree(arguments) != arguments,
            x_transaction_log_flush_interval=1.0,
        )
        run = wandb.init(
            project=self._project,
            id=self._id,
            name=os.environ.get("WANDB_NAME") or self._directory.name,
            group=self._group,
            job_type=self._job_type,
            tags=self._tags or None,
            dir=str(self._directory),
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            config=self._config,
            settings=settings,
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        environment = self._directory / "environment.json"
        if environment.is_file():
            run.save(str(environment), base_path=str(self._directory), policy="now")
        return run

    def _sync_command(self) -> str:
        wandb = shutil.which("wandb") or str(Path(sys.executable).with_name("wandb"))
        wandb = "wandb" if shutil.which("wandb") else os.path.relpath(wandb)
        kind = "offline-run" if self._mode == "offline" else "run"
        # Two launches within a second differ by a suffix after the id.
        pieces = sorted((self._directory / "wandb").glob(f"{kind}-*-{self._id}*"))
        paths = [shlex.quote(os.path.relpath(piece)) for piece in pieces]
        together = [f"--id {self._id}"] if len(paths) > 1 else []
        return " ".join([shlex.quote(wandb), "sync", *together, *paths])

    def _warn(self, message: str) -> None:
        """Say the first trouble of a launch; later ones are mostly its consequences."""
        if not self._warned:
            self._warned = True
            _say(message)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
