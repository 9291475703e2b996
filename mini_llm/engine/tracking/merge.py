"""Make one W&B run of the directories that the launches of a run have left.

A resumed launch is a directory of its own, whose rows count W&B's `_step` from 0 again: W&B would put them over the
first ones. It also repeats the steps between the checkpoint and the end of the launch before.
"""

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.engine.tracking.transaction_log import read_records, write_records
from mini_llm.engine.tracking.wandb_mirror import STEP
from mini_llm.engine.tracking.wandb_runs import stored_id

# Records that only the first launch, or only the last one, gives to the whole run.
_FIRST_ONLY, _LAST_ONLY = ("header", "environment"), ("exit", "final", "footer")


@dataclass
class Launch:
    """One directory of W&B with the records of a launch."""

    path: Path
    records: list[Any]

    @property
    def run(self) -> Any:
        """The record that describes the run."""
        return next(record.run for record in self.records if record.HasField("run"))

    @property
    def offline(self) -> bool:
        return self.path.name.startswith("offline-run-")

    @property
    def first_step(self) -> float:
        """The smallest training step that it recorded; infinite without one."""
        steps = [step for record in self.records if (step := _training_step(record)) is not None]
        return min(steps, default=math.inf)


def launches_of(run: Path) -> dict[str, list[Launch]]:
    """The launches of a run directory by W&B run id, in order of start. Directories without records are left out."""
    own = stored_id(run)
    found: dict[str, list[Launch]] = defaultdict(list)
    for log in sorted((run / "wandb").glob("*run-*/run-*.wandb")):
        try:
            launch = Launch(log.parent, list(read_records(log)))
        except (OSError, ValueError):
            continue
        if log.parent.is_symlink() or not any(record.HasField("run") for record in launch.records):
            continue
        found[launch.run.run_id or own].append(launch)
    for launches in found.values():
        launches.sort(key=lambda launch: (launch.run.start_time.seconds, launch.run.start_time.nanos))
    return dict(found)


def merge(launches: list[Launch], directory: Path) -> None:
    """Write the launches of one run as one offline run in `directory`, which W&B can send."""
    (directory / "files").mkdir(parents=True, exist_ok=True)
    for launch in launches:
        shutil.copytree(launch.path / "files", directory / "files", dirs_exist_ok=True)
    write_records(directory / f"run-{launches[0].run.run_id}.wandb", _merged(launches))


def _merged(launches: list[Launch]) -> Iterator[Any]:
    """The records of all launches, without rows that a later launch repeats, and with W&B's steps counted through."""
    step = 0
    for number, launch in enumerate(launches):
        again = min((later.first_step for later in launches[number + 1 :]), default=math.inf)
        last = number == len(launches) - 1
        for record in launch.records:
            kind = record.WhichOneof("record_type")
            if (kind in _FIRST_ONLY and number) or (kind in _LAST_ONLY and not last):
                continue
            if kind == "run" and number:
                yield _as_config(record)
            elif kind == "history":
                at = _training_step(record)
                if at is None or at < again:
                    _renumber(record.history.item, step)
                    record.history.step.num = step
                    step += 1
                    yield record
            elif kind == "summary":
                _renumber(record.summary.update, max(step, 0))
                yield record
            else:
                yield record


def _as_config(record: Any) -> Any:
    """The configuration of a later launch as an update of that of the run."""
    update = type(record)()
    update.config.update.extend(item for item in record.run.config.update if item.key != "_wandb")
    return update


def _training_step(record: Any) -> float | None:
    """The training step of a row of the history."""
    if not record.HasField("history"):
        return None
    found = [item.value_json for item in record.history.item if _name(item) == STEP]
    return float(json.loads(found[0])) if found else None


def _renumber(items: Any, step: int) -> None:
    for item in items:
        if _name(item) == "_step":
            item.value_json = str(step)


def _name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)
