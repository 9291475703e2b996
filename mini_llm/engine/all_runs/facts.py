"""What the table of runs says about one run, from whatever files of it can be read."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.report.record import RUN_FILES, Run, find_runs
from mini_llm.engine.run.liveness import is_live
from mini_llm.engine.run.state import describe, say

RUNS = Path("runs")
# A damaged file can hold anything: what reading it may raise.
DAMAGE = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)


@dataclass
class Facts:
    """One row of the table; what is unknown is None or empty."""

    name: str
    state: str  # alive, stopped, finished or damaged
    kind: str = ""
    task: str = ""
    parameters: int | None = None
    tokens: int | None = None
    steps: int | None = None
    data: str = ""
    score: str = ""
    seconds: float | None = None
    device: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def state(path: Path, finished: bool) -> str:
    """Whether a process works on the run: "alive"; otherwise "finished" or "stopped"."""
    if is_live(path):
        return "alive"
    return "finished" if finished else "stopped"


def facts(path: Path) -> Facts:
    """The row of the run at `path`. A run that cannot be read has the state "damaged", and stderr says why."""
    try:
        return _facts(path)
    except DAMAGE as error:
        say(f"{path}: cannot be read ({describe(error)})")
        return Facts(path.name, "damaged")


def _facts(path: Path) -> Facts:
    run = Run(path)
    config = read_config(path)
    steps = [row["step"] for row in run.rows if "step" in row]
    return Facts(
        name=path.name,
        state=state(path, bool(run.finished)),
        kind=run.kind,
        task=str(run.summary.get("task") or ""),
        parameters=_whole(run.summary.get("parameters")),
        tokens=_whole(run.summary.get("tokens")) or tokens_read(run.rows),
        steps=max(steps, default=None),
        data=", ".join(Path(name).name or name for name in data_sources(config)),
        score=run.headline(),
        seconds=run.seconds if run.seconds is not None else elapsed(run.rows),
        device=device(run.environment),
    )


def read_config(path: Path, name: str = "config.yaml") -> dict[str, Any]:
    """A configuration of a run as a tree, {} where it is missing or damaged."""
    try:
        tree = yaml.safe_load(Run(path).text(name))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        say(f"{path / name}: damaged ({describe(ValueError(str(error)))}); it is left out")
        return {}
    return tree if isinstance(tree, dict) else {}


def data_sources(config: Mapping[str, Any]) -> list[str]:
    """The texts, pairs or rows that a configuration names, as they are written there."""
    corpus, pairs, data = (config.get(key) for key in ("corpus", "pairs", "data"))
    found = [data, pairs] if isinstance(data, dict) or isinstance(pairs, dict) else []
    if not found and isinstance(corpus, dict):
        sources = corpus.get("sources")
        found = sources if isinstance(sources, list) else [sources]
    names = [source.get("path") if isinstance(source, dict) else source for source in found]
    return [str(name) for name in names if isinstance(name, (str, int))]


def tokens_read(rows: list[dict[str, Any]]) -> int | None:
    """Tokens of a run that does not record their number: its rate over its seconds; None without rates."""
    total, before = 0.0, 0.0
    for row in rows:
        rate, seconds = row.get("tokens_per_second"), row.get("elapsed")
        if isinstance(rate, (int, float)) and isinstance(seconds, (int, float)):
            total += rate * max(0.0, seconds - before) if before else 0.0
            before = seconds
    return round(total) or None


def elapsed(rows: list[dict[str, Any]]) -> float | None:
    """Seconds of training until the last row."""
    return max((row["elapsed"] for row in rows if isinstance(row.get("elapsed"), (int, float))), default=None)


def device(environment: Mapping[str, Any]) -> str:
    """The GPUs of a run, or its processor and number of cores."""
    gpus = environment.get("gpus")
    if gpus:
        return gpus[0] if len(gpus) == 1 else f"{len(gpus)} x {gpus[0]}"
    cpu = str(environment.get("cpu") or "").replace("(R)", "").replace("(TM)", "").replace(" Processor", "")
    cores = environment.get("cores")
    return f"{cpu}, {cores} cores" if cpu and isinstance(cores, int) else cpu


def find_run(name: Path, runs: Path = RUNS) -> Path:
    """The directory of a run, named by its path or its name below `runs`. Raises ConfigError with similar names."""
    for path in (name, runs / name):
        if path.is_dir() and any((path / file).exists() for file in RUN_FILES):
            return path
    near = difflib.get_close_matches(name.name, [path.name for path in all_runs(runs)], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else f". `python -m mini_llm runs --runs {runs}` lists them"
    raise ConfigError(f"{name}: no run there or in {runs}/ (a run has one of {', '.join(RUN_FILES)}){hint}")


def all_runs(runs: Path) -> list[Path]:
    """The run directories directly below `runs`, none if there are none."""
    try:
        return find_runs(runs)
    except (ConfigError, OSError):
        return []


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) else None
