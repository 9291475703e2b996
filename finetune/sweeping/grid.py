"""The trials of a sweep: every combination of the values of `key=value,value` arguments."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_llm.engine.config import flag_overrides, load_config, split_arguments
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.inputs import own_name

from ..config import FinetuneConfig

# Settings that a sweep chooses itself, or that would let the test data choose.
NOT_SWEPT = ("run", "budget", "data.test", "data.test_split", "data.fold")
# A trial with less time is over before the learning rate has fallen.
LEAST_SECONDS = 5.0
# The rest of the budget is for loading data, and for scoring the chosen run.
TRAINING_SHARE = 0.9
# What follows the name of the final run in the name of the folder of the trials.
TRIALS = "-trials"


@dataclass(frozen=True)
class Sweep:
    """`base`: the settings of all trials. `grid`: the values of each swept key, as typed. `seconds`: of each trial.

    The time is that of all trials and of the final run together.
    """

    base: FinetuneConfig
    path: Path | None
    fixed: list[Any]
    grid: dict[str, list[str]]
    seconds: float

    @property
    def name(self) -> str:
        """The name of the final run."""
        return self.base.run or f"{self.base.run_name}-sweep"

    def named_by_data(self, runs: Path) -> "Sweep":
        """This sweep with a name of its own if nobody has named it and its default name belongs to other data."""
        name = self.base.run or own_name(self.name, self.base.data_paths, runs, TRIALS)
        return replace(self, base=self.base.model_copy(update={"run": name}))

    def trials(self) -> list[dict[str, str]]:
        """Every combination of values, seeds of the same settings together."""
        keys = sorted(self.grid, key=lambda key: key == "seed")
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(self.grid[k] for k in keys))]

    def config(self, trial: Mapping[str, str]) -> FinetuneConfig:
        """The settings of a trial. Raises ConfigError for a value that its key cannot have."""
        changes = [f"{key}={value}" for key, value in trial.items()]
        config = load_config(FinetuneConfig, self.path, [*self.fixed, *changes])
        return config.model_copy(update={"budget": f"{self.seconds:g}s", "run": trial_name(trial)})


def read_sweep(arguments: Sequence[str], flags: Mapping[str, Any], budget: str) -> Sweep:
    """The sweep of `[CONFIG.yaml] key=value key=value,value ...`. Raises ConfigError.

    budget: of all runs together, unless there is a setting `budget`. A value with commas lists values to try, unless it
    is a list in brackets or stands in quotation marks.
    """
    path, overrides = split_arguments(list(arguments))
    grid: dict[str, list[str]] = {}
    fixed: list[Any] = flag_overrides(flags)
    for override in overrides:
        key, _, text = override.partition("=")
        values = [value.strip() for value in text.split(",")]
        if len(values) == 1 or text.lstrip().startswith(("[", "{", '"', "'")):
            fixed.append(override)
            continue
        if key in NOT_SWEPT:
            raise ConfigError(f"{key} cannot be swept: every trial has the same budget and no trial reads test data")
        if "" in values or len(set(values)) < len(values):
            raise ConfigError(f"'{override}': an empty or repeated value; write {key}=A,B with different values")
        grid[key] = values
    if not grid:
        raise ConfigError("nothing to sweep: give one setting several values, for example optim.lr=1e-4,3e-4 seed=1,2")
    base = load_config(FinetuneConfig, path, [("budget", budget), *fixed])
    total = base.budget_seconds
    if total is None:
        raise ConfigError("a sweep needs a time: --budget 30m")
    sweep = Sweep(base, path, fixed, grid, 0.0)
    trials = sweep.trials()
    seconds = TRAINING_SHARE * total / (len(trials) + 1)
    if seconds < LEAST_SECONDS:
        raise ConfigError(
            f"{len(trials)} trials and a final run in {base.budget} have {seconds:.1f} s each, but need "
            f"{LEAST_SECONDS:g}: try fewer values, or give a longer --budget"
        )
    sweep = Sweep(base, path, fixed, grid, round(seconds, 1))
    for trial in trials:
        sweep.config(trial)
    return sweep


def trial_name(trial: Mapping[str, str]) -> str:
    """A name for a directory: "lr-3e-4.seed-1"."""
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in trial.items()]
    return re.sub(r"[^\w.+-]+", "-", ".".join(parts)).lstrip("-.+")
