"""Run the trials of a sweep one after another, each as the command that W&B's agent would start.

runs/SWEEP/    config.yaml, sweep.json: the results; sweep.html
runs/TRIAL/    one run per trial, and per round of successive halving
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.run.signals import Interrupted, StopRequest
from mini_llm.engine.run.state import Finished, Summary, read_object, read_state
from mini_llm.engine.sweep.file import Metric, SweepFile, Trial, command_line, list_trials, sweep_name
from mini_llm.engine.sweep.rounds import Round, plan_rounds

SECONDS_BETWEEN_LOOKS = 0.3
# They name one run of W&B, and the trials are several.
ONE_RUN = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")


@dataclass(frozen=True)
class Result:
    """What a trial reached in a round; `value` is None when its command failed with `exit_code`."""

    trial: Trial
    round: Round
    run: str
    value: float | None
    exit_code: int = 0


@dataclass(frozen=True)
class Sweep:
    """A sweep with its results, best first, over all rounds."""

    name: str
    metric: Metric
    results: list[Result]

    @property
    def best(self) -> Result | None:
        return next((result for result in self.results if result.value is not None), None)


def run_sweep(file: SweepFile, path: Path, seconds: float, count: int | None, runs: Path = Path("runs")) -> Sweep:
    """Run or resume the sweep of `file`, which was read from `path`. Raises ConfigError and Interrupted.

    seconds: the budget of all trials together. count: number of trials; see list_trials.
    """
    name = sweep_name(file, path)
    trials = list_trials(file, name, count)
    rounds = plan_rounds(len(trials), seconds, file.early_terminate.eta if file.early_terminate else None)
    tree = {"budget_seconds": seconds, "trials": len(trials), "file": _as_lines(file)}
    done: list[Result] = []
    with RunDirectory(runs / name) as directory:
        try:
            directory.compare_config(tree)
        except ConfigError as error:
            changed = str(error).partition("\nKeep both")[0]
            raise ConfigError(
                f"{changed}\nKeep both: give this sweep another `name` in {path}. Or start over: delete "
                f"{directory.path} and its trials"
            ) from None
        directory.record(tree, "sweep")
        kept: Sequence[Trial] = trials
        for this in rounds:
            results = []
            for place, trial in enumerate(kept, 1):
                print(f"trial {place} of {len(kept)}{_in_round(this, rounds)}: {trial.name}", file=sys.stderr)
                results.append(_result(file, trial, this, name, runs))
            results.sort(key=lambda result: _merit(result, file.metric))
            done += results
            succeeded = [result.trial for result in results if result.value is not None]
            if not succeeded:
                codes = ", ".join(sorted({str(result.exit_code) for result in results}))
                raise ConfigError(f"every trial of {path} has failed (exit code {codes}); see the messages above")
            kept = succeeded[: rounds[this.number].trials] if this.number < len(rounds) else []
        sweep = Sweep(name, file.metric, sorted(done, key=lambda result: _merit(result, file.metric)))
        write_json(directory.path / "sweep.json", _content(sweep))
        directory.finish({})
    return sweep


def _as_lines(file: SweepFile) -> list[str]:
    """The settings of the file as texts; as keys of a configuration, "optim.lr" would be a section."""
    return [f"{key}: {value}" for key, value in file.model_dump(mode="json", exclude_unset=True).items()]


def _in_round(this: Round, rounds: Sequence[Round]) -> str:
    return f", round {this.number} of {len(rounds)}" if len(rounds) > 1 else ""


def _merit(result: Result, metric: Metric) -> float:
    if result.value is None:
        return float("inf")
    return result.value if metric.goal == "minimize" else -result.value


def _result(file: SweepFile, trial: Trial, this: Round, sweep: str, runs: Path) -> Result:
    """Run a trial, or resume it, or read what it has reached."""
    run = trial.name if this.number == 1 else f"{trial.name}-round-{this.number}"
    if read_state(runs / run / "finished.json", Finished) is None:
        fixed = {"tracking.group": sweep, "budget": f"{this.seconds:g}s", "run": run}
        code = _run(command_line(file, {**trial.values, **fixed}))
        if code == 2:
            raise ConfigError(f"trial {trial.name} cannot start, see the message above; all trials have stopped")
        if code:
            print(f"{run}: failed with exit code {code}; going on with the next trial", file=sys.stderr)
            return Result(trial, this, run, None, code)
    return Result(trial, this, run, read_metric(runs / run, file.metric))


def _run(command: list[str]) -> int:
    """Run a command to its end and return its exit code. Raises Interrupted after a signal, which the command gets."""
    environment = {key: value for key, value in os.environ.items() if key not in ONE_RUN}
    with StopRequest() as stop:
        try:
            process = subprocess.Popen(command, env=environment, preexec_fn=_stop_with_parent)
        except OSError as error:
            raise ConfigError(f"command {command[0]}: {error.strerror or error}") from None
        forwarded = False
        while True:
            try:
                code = process.wait(SECONDS_BETWEEN_LOOKS)
                break
            except subprocess.TimeoutExpired:
                if stop.number and not forwarded:
                    process.send_signal(stop.number)
                    forwarded = True
        number = stop.number or (code - 128 if code in (130, 143) else 0)
    if number:
        raise Interrupted("the sweep has stopped; the same command resumes it", number)
    return code


def _stop_with_parent() -> None:
    """Have Linux send SIGTERM to a trial when the sweep is killed; the trial then saves and exits."""
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def read_metric(run: Path, metric: Metric) -> float:
    """The value of a finished run: its final score or summary, or else the best evaluation of metrics.jsonl.

    Raises ConfigError when the run has no value under this name.
    """
    finished = read_state(run / "finished.json", Finished)
    for found in (finished.scores if finished else {}, read_object(run / "summary.json", Summary)):
        if _is_number(found.get(metric.name)):
            return float(found[metric.name])
    rows = list(read_rows(run / "metrics.jsonl"))
    values = [float(row[metric.name]) for row in rows if _is_number(row.get(metric.name))]
    if not values:
        known = sorted({key for row in rows for key in row if key.startswith("val/")})
        raise ConfigError(f"metric {metric.name}: {run} has none; it has {', '.join(known) or 'no validation metric'}")
    return min(values) if metric.goal == "minimize" else max(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _content(sweep: Sweep) -> dict[str, Any]:
    """The content of sweep.json."""
    return {
        "metric": sweep.metric.model_dump(),
        "best": sweep.best.run if sweep.best else None,
        "results": [
            {
                "run": result.run,
                "round": result.round.number,
                "seconds": result.round.seconds,
                "value": result.value,
                "exit_code": result.exit_code,
                "settings": result.trial.values,
            }
            for result in sweep.results
        ],
    }
