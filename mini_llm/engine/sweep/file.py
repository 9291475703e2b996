"""A sweep file in the format of W&B, which `wandb sweep FILE` reads too: program, command, method, metric, parameters.

Format: https://docs.wandb.ai/guides/sweeps/define-sweep-configuration
"""

import itertools
import math
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mini_llm.engine.config import Config, build_config, read_yaml
from mini_llm.engine.errors import ConfigError

RANDOM_TRIALS = 8
LONGEST_NAME = 100
MACROS = {"${env}", "${interpreter}", "${program}", "${args}", "${args_no_hyphens}"}
COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
Value = str | int | float | bool | None


class Parameter(Config):
    """One parameter: `value`, or `values`, or `min` and `max` with a distribution."""

    value: Value = None
    values: list[Value] | None = Field(None, min_length=1)
    min: float | None = None
    max: float | None = None
    q: float | None = Field(None, gt=0)
    distribution: (
        Literal["constant", "categorical", "uniform", "int_uniform", "q_uniform", "log_uniform_values"] | None
    ) = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Parameter":
        ranged = self.min is not None or self.max is not None
        if [self.values is not None, ranged, "value" in self.model_fields_set].count(True) != 1:
            raise ValueError("give either value, or values, or min and max")
        if ranged and (self.min is None or self.max is None or not self.min < self.max):
            raise ValueError("min and max are both needed, and min is the smaller one")
        if self.distribution == "log_uniform_values" and (self.min is None or self.min <= 0):
            raise ValueError("log_uniform_values needs a min above 0")
        return self

    @property
    def choices(self) -> list[Value] | None:
        """The values to choose from; None for a range."""
        return self.values if self.values is not None else None if self.min is not None else [self.value]

    def draw(self, generator: random.Random) -> Value:
        """A random value."""
        if self.choices is not None:
            return generator.choice(self.choices)
        low, high = float(self.min or 0.0), float(self.max or 0.0)
        whole = self.distribution is None and low.is_integer() and high.is_integer()
        if self.distribution == "int_uniform" or whole:
            return generator.randint(math.ceil(low), math.floor(high))
        if self.distribution == "log_uniform_values":
            return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.3g}")
        value = generator.uniform(low, high)
        if self.distribution == "q_uniform":
            step = self.q or 1.0
            return float(f"{round(value / step) * step:.6g}")
        return float(f"{value:.4g}")


class Metric(Config):
    """What is compared: a validation metric of summary.json, and whether larger is better."""

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"

    @field_validator("name")
    @classmethod
    def _of_validation(cls, name: str) -> str:
        if not name.startswith("val/"):
            raise ValueError("only validation may choose, so the name begins with val/, such as val/loss")
        return name


class EarlyTerminate(Config):
    """Early stopping. Offline it is successive halving: each round keeps one trial of `eta` and has as much time."""

    type: Literal["hyperband"]
    eta: float = Field(3, gt=1)
    min_iter: int | None = None
    max_iter: int | None = None
    s: int | None = None
    strict: bool | None = None


class SweepFile(Config):
    """The keys of a sweep file. W&B's other keys (project, entity, description) have no effect here."""

    program: str = ""
    command: list[str] = COMMAND
    method: Literal["grid", "random", "bayes"]
    metric: Metric
    parameters: dict[str, Parameter] = Field(min_length=1)
    name: str | None = None
    run_cap: int | None = Field(None, ge=1)
    early_terminate: EarlyTerminate | None = None
    project: str | None = None
    entity: str | None = None
    description: str | None = None

    @model_validator(mode="after")
    def _can_be_run(self) -> "SweepFile":
        if self.method == "bayes":
            raise ValueError("method bayes needs W&B's server (wandb sweep FILE); offline there are grid and random")
        ranges = [name for name, parameter in self.parameters.items() if parameter.choices is None]
        if self.method == "grid" and ranges:
            raise ValueError(f"method grid needs values for {ranges[0]}, or use method random")
        if "run" in self.parameters:
            raise ValueError("parameter run: the sweep names its runs; leave it out")
        if "budget" in self.parameters and (self.parameters["budget"].choices or [0, 0])[1:]:
            raise ValueError("parameter budget cannot be swept: all trials have the same time")
        unknown = [word for word in self.command if word.startswith("${") and word not in MACROS]
        if unknown:
            raise ValueError(f"command: {unknown[0]} is unknown here; known: {', '.join(sorted(MACROS))}")
        if not {"${args}", "${args_no_hyphens}"} & set(self.command):
            raise ValueError("command: ${args} is missing, so that no trial would get its values")
        if "${program}" in self.command and not self.program:
            raise ValueError("program is missing, which the command contains")
        return self


@dataclass(frozen=True)
class Trial:
    """One set of values, and the name of its run."""

    number: int
    values: dict[str, Value]
    name: str


def read_sweep_file(path: Path) -> SweepFile:
    """Read and check a sweep file. Raises ConfigError naming the key."""
    tree = read_yaml(path)
    for name, parameter in (tree.get("parameters") or {}).items() if isinstance(tree.get("parameters"), dict) else ():
        if isinstance(parameter, dict) and "parameters" in parameter:
            inner = next(iter(parameter["parameters"] or {"KEY": None}))
            raise ConfigError(f"{path}: parameters.{name}: nested parameters are written as one key: {name}.{inner}")
    return build_config(SweepFile, tree, str(path))


def sweep_name(file: SweepFile, path: Path) -> str:
    """The name of the sweep, and of its folder under runs/: `name` of the file, or NAME-sweep after the file."""
    return _as_name(file.name or f"{path.stem}-sweep") or "sweep"


def list_trials(file: SweepFile, name: str, count: int | None) -> list[Trial]:
    """The trials: every combination (grid) or random ones, the same in every launch. count: None is run_cap, or all
    combinations, or RANDOM_TRIALS."""
    swept = {key: parameter for key, parameter in file.parameters.items() if key != "budget"}
    count = count or file.run_cap
    if file.method == "grid":
        combinations = itertools.product(*(parameter.choices or [] for parameter in swept.values()))
        found = [dict(zip(swept, values, strict=True)) for values in itertools.islice(combinations, count)]
    else:
        found = _draw(swept, count or RANDOM_TRIALS)
    varying = [key for key, parameter in swept.items() if parameter.choices is None or len(parameter.choices) > 1]
    return [Trial(number, values, _trial_name(name, number, values, varying)) for number, values in enumerate(found, 1)]


def _draw(parameters: dict[str, Parameter], count: int) -> list[dict[str, Value]]:
    """Different random combinations, as many as there are, at most `count`."""
    generator = random.Random(0)
    found: list[dict[str, Value]] = []
    for _ in range(100 * count):
        values = {key: parameter.draw(generator) for key, parameter in parameters.items()}
        if values not in found:
            found.append(values)
        if len(found) == count:
            break
    return found


def _trial_name(sweep: str, number: int, values: dict[str, Value], varying: list[str]) -> str:
    parts = [f"{key.rpartition('.')[2]}-{values[key]}" for key in varying]
    return _as_name(".".join([f"{sweep}-{number:02d}", *parts]))[:LONGEST_NAME].rstrip("-.")


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.+")


def command_line(file: SweepFile, settings: dict[str, Value]) -> list[str]:
    """The command of a trial with `settings`, as W&B's agent would write it."""
    words: list[str] = []
    for word in file.command:
        if word in ("${interpreter}", "python", "python3"):
            words.append(sys.executable)
        elif word == "${program}":
            words.append(file.program)
        elif word in ("${args}", "${args_no_hyphens}"):
            hyphens = "--" if word == "${args}" else ""
            words += [f"{hyphens}{key}={_as_text(value)}" for key, value in settings.items()]
        elif word != "${env}":
            words.append(word)
    return words


def _as_text(value: Value) -> str:
    """A value as settings are typed: null and true, where W&B's agent writes None and True."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
