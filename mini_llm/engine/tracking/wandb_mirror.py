"""A copy of a run's record in Weights & Biases that can neither fail nor slow down the run.

One background thread makes every W&B call, in order. W&B's own service process does not replace it. Measured with W&B
0.31: `wandb.init` takes 0.8 s offline and INIT_TIMEOUT when the server hangs, `run.log` takes 0.3 ms, and it blocks
forever once the service process is stopped.

W&B cannot resume an offline run, so each launch writes one more offline directory with the same run id; sync.py sends
them as one run. W&B also drops rows whose step is smaller than the last one, as after a rewind, so the step is logged
as a metric: `train/step`.
"""

import os
import queue
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mini_llm.engine.run.environment import redact, redact_tree
from mini_llm.engine.run.state import Environment, read_object
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.wandb_runs import (
    default_group,
    is_owner,
    random_id,
    restore_variables,
    set_variables,
    stable_id,
    variable,
)
from mini_llm.stages import local_commands

INIT_TIMEOUT = 20.0
FINISH_TIMEOUT = 60.0
STEP = "train/step"
_QUEUE_LENGTH = 10_000
# Counts of bins of equal width, and the lower and upper edge of all of them.
Histogram = tuple[list[int], float, float]
# A row of artifacts.jsonl, and its files by their names in the artifact.
Contents = tuple[Mapping[str, Any], Mapping[str, Path]]


def resolve_mode(configured: str) -> str:
    """ "online", "offline", "disabled", or "auto" (online if there is a key). WANDB_MODE overrides "auto"."""
    chosen = variable("WANDB_MODE").lower()
    if configured != "auto" or not chosen:
        return configured
    return {"online": "online", "run": "online", "shared": "online", "disabled": "disabled"}.get(chosen, "offline")


# Directories of offline runs whose hint waits for the run that they were made for.
_waiting: list[Path] = []


class WandbMirror:
    """One launch of a run as one W&B run. No method raises, and only `finish` waits.

    apart: not the W&B run of the directory but a new one, which is never resumed. start: the model directory from which
    the run starts.
    """

    def __init__(
        self,
        directory: Path,
        mode: str,
        tracking: TrackingConfig,
        job_type: str,
        run_config: Mapping[str, Any],
        apart: bool = False,
        start: Path | None = None,
    ):
        self._directory, self._mode, self._apart = directory.resolve(), mode, apart
        self._owner = not apart and is_owner(self._directory)
        group = variable("WANDB_RUN_GROUP") or tracking.group or default_group(self._directory, start)
        # W&B's environment variables override our settings, as W&B users expect.
        run_settings = {
            "project": variable("WANDB_PROJECT") or tracking.project,
            "group": group,
            "name": variable("WANDB_NAME") or self._directory.name + (f"-{job_type}" if apart else ""),
            "tags": tracking.tags or None,
            "job_type": job_type,
            "config": {**run_config, **_code_version(self._directory)},
        }
        self._run_settings = redact_tree(run_settings)
        self._calls: queue.SimpleQueue[Callable[[Any], object] | None] = queue.SimpleQueue()
        self._exit_code, self._warned, self._given_up = 0, False, False
        self._thread: threading.Thread | None = None
        self._variables = set_variables(self._directory, self._owner)
        try:
            # Not in the thread: a concurrent import in the main thread could see half-initialised modules.
            import wandb

            self._wandb: Any = wandb
            self._id = random_id() if apart else stable_id(self._directory, self._run_settings["project"], group)
        except Exception as error:
            _print(f"W&B is not used ({_reason(error)})")
            return
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        self._thread.start()

    def config(self, values: Mapping[str, Any]) -> None:
        """Update the run's configuration."""
        self._submit(lambda run: run.config.update(redact_tree(values), allow_val_change=True))

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row, which contains STEP."""
        self._submit(lambda run: run.log(dict(row)))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Merge values into the run's summary."""
        self._submit(lambda run: run.summary.update(redact_tree(values)))

    def alert(self, title: str, text: str) -> None:
        """Send an alert by mail or chat, as configured in W&B."""
        self._submit(lambda run: run.alert(title=title, text=redact(text)))

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int | None) -> None:
        """Log a table."""

        def call(run: Any) -> None:
            table = self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            run.log({name: table} if step is None else {name: table, STEP: step})

        self._submit(call)

    def layers(self, step: int, norms: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Log norms, and histograms as (counts, lower edge, upper edge) of bins of equal width."""

        def call(run: Any) -> None:
            import numpy as np

            drawn = {
                name: self._wandb.Histogram(np_histogram=(np.array(counts), np.linspace(low, high, len(counts) + 1)))
                for name, (counts, low, high) in histograms.items()
            }
            run.log({STEP: step, **norms, **drawn})

        self._submit(call)

    def artifact(self, describe: Callable[[], Contents], aliases: Sequence[str] = ()) -> None:
        """Log an artifact that refers to its files without a copy. Every version also has its hash as an alias."""

        def call(run: Any) -> None:
            artifact, hashed = self._artifact(describe())
            run.log_artifact(artifact, aliases=["latest", hashed, *aliases])

        self._submit(call)

    def uses(self, describe: Callable[[], Contents]) -> None:
        """Record that this run reads an artifact; another run may have logged it, with the same files."""

        def call(run: Any) -> None:
            artifact, hashed = self._artifact(describe())
            # The part of run.use_artifact that works offline, and that online does not wait for the upload.
            run._log_artifact(artifact, aliases=[hashed], is_user_created=True, use_after_commit=True)

        self._submit(call)

    def _artifact(self, contents: Contents) -> tuple[Any, str]:
        """The artifact, and the name of its version by its hash."""
        record, files = contents
        name_allowed = re.sub(r"[^\w.-]", "-", record["name"])[:128]
        metadata = redact_tree({**record["metadata"], "sha256": record["sha256"], "files": record["files"]})
        artifact = self._wandb.Artifact(name_allowed, type=record["kind"], metadata=metadata)
        for inside, path in files.items():
            artifact.add_file(str(path), name=inside, policy="immutable", skip_cache=True)
        return artifact, f"sha256-{record['sha256'][:12]}"

    def finish(self, exit_code: int) -> None:
        """Send what is left, for FINISH_TIMEOUT seconds at most, and record the exit code."""
        if self._thread is None:
            return
        self._exit_code = exit_code
        self._calls.put(None)
        self._thread.join(INIT_TIMEOUT + FINISH_TIMEOUT + 5)
        if self._thread.is_alive():
            self._warn(f"W&B does not answer. To send the rest: {sync_command([self._directory])}")
            self._given_up = True
            self._try("did not end", self._end_service)
            self._thread.join(5)
        self._thread = None
        restore_variables(self._variables)

    def _submit(self, call: Callable[[Any], object]) -> None:
        if self._thread is None or not self._thread.is_alive():
            return
        if self._calls.qsize() < _QUEUE_LENGTH:
            self._calls.put(call)
        else:
            self._warn("W&B is too slow and misses rows; metrics.jsonl has all of them")

    def _work(self) -> None:
        try:
            run = self._start()
        except Exception as error:
            _print(f"W&B is not used ({_reason(error)})")
            return
        while (call := self._calls.get()) is not None:
            self._try("lost a record", lambda call=call: call(run))
        started = time.monotonic()
        self._try("did not finish cleanly", lambda: run.finish(exit_code=self._exit_code))
        if self._mode == "offline":
            self._say_how_to_send()
        elif time.monotonic() - started >= FINISH_TIMEOUT and not self._given_up:
            command = sync_command([self._directory])
            _print(f"W&B could not take all rows in {FINISH_TIMEOUT:.0f} s. To send the rest: {command}")
            self._try("did not end", self._end_service)

    def _end_service(self) -> None:
        """End W&B's service process: this process would wait for it at its exit, as long as the server hangs."""
        from wandb.sdk import wandb_setup

        setup: Any = wandb_setup.singleton()
        connection, setup._connection = setup._connection, None
        if connection is not None and connection._proc is not None:
            connection._cleanup()
            connection._proc._process.kill()
            for name in [name for name in os.environ if name.endswith("WANDB_SERVICE")]:
                del os.environ[name]

    def _say_how_to_send(self) -> None:
        if self._directory not in _waiting:
            _waiting.append(self._directory)
        # Once for a command or a pipeline: a tokenizer that a stage has trained for itself waits for the stage, and
        # `make pipeline` says it at its end.
        if (self._owner or self._apart) and variable("MINI_LLM_WANDB_HINT") != "no":
            runs = "this run" if len(_waiting) == 1 else "these runs"
            _print(f"W&B ran offline. To send {runs}: {sync_command(_waiting)}")
            _waiting.clear()

    def _try(self, failure: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self._warn(f"W&B {failure} ({_reason(error)}); the run continues")

    def _start(self) -> Any:
        wandb = self._wandb
        wandb.setup(settings=wandb.Settings(silent=True))
        if self._mode != "offline":
            trouble = "W&B has no key (run `wandb login`, or set WANDB_API_KEY)" if self._mode == "online" else ""
            try:
                if wandb.login(prompt=False, verify=False):
                    run = self._init("online")
                    _print(f"W&B: {run.url}")
                    return run
            except Exception as error:
                trouble = f"W&B cannot be reached or refuses the key ({_reason(error)})"
                # Restart the service process, which still holds the failed run under our id.
                wandb.teardown()
                wandb.setup(settings=wandb.Settings(silent=True))
            if trouble:
                self._warn(f"{trouble}; this run is recorded offline")
        return self._init("offline")

    def _init(self, mode: str) -> Any:
        self._mode = mode
        arguments = sys.argv[1:]
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_save_requirements=False,
            # W&B's metadata contains the command line: leave it out if an argument is a secret.
            x_disable_meta=redact_tree(arguments) != arguments,
            x_transaction_log_flush_interval=1.0,
            # W&B reads the environment once in a process.
            sweep_id=variable("WANDB_SWEEP_ID") or None if self._owner else None,
        )
        run = self._wandb.init(
            **self._run_settings,
            id=self._id,
            dir=str(self._directory),
            mode=mode,
            resume="allow" if mode == "online" and not self._apart else None,
            reinit="create_new",
            settings=settings,
        )
        run._log_artifact = partial(_log_artifact, run)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        environment = self._directory / "environment.json"
        if environment.is_file():
            run.save(str(environment), base_path=str(self._directory), policy="now")
        return run

    def _warn(self, message: str) -> None:
        """Print the first problem of a launch; later ones usually follow from it."""
        if not self._warned:
            self._warned = True
            _print(message)


def _log_artifact(
    run: Any,
    artifact: Any,
    name: str | None = None,
    type: str | None = None,
    aliases: list[str] | None = None,
    tags: list[str] | None = None,
    **options: Any,
) -> Any:
    """Replaces run._log_artifact, behind artifacts and tables, by what it does offline.

    Online, W&B's own asks the server for the type of the artifact first, and waits as long as the server hangs.
    """
    options.pop("distributed_id", None)
    artifact, aliases = run._prepare_artifact(artifact, name, type, aliases)
    run._interface.publish_artifact(run, artifact, aliases, tags, **options)
    return artifact


def sync_command(runs: Sequence[Path]) -> str:
    """The command that sends these runs."""
    return local_commands(f"python -m mini_llm sync {shlex.join(map(os.path.relpath, runs))}")


def _code_version(directory: Path) -> dict[str, Any]:
    """The git commit and the hash of the code, as environment.json of the run has them."""
    environment = read_object(directory / "environment.json", Environment)
    found = {"commit": environment.get("commit"), "hash": environment.get("code")}
    return {"code": found} if any(found.values()) else {}


def _reason(error: Exception) -> str:
    """The first line of a message; of pydantic's, also the setting and what is wrong with it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 3 if type(error).__name__ == "ValidationError" else 1])[:200]


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
