"""The runs of a cross-validation: one per fold, and one on all rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_llm.engine.config import flag_overrides, load_config, split_arguments
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.inputs import own_name

from ..config import FinetuneConfig
from ..sweeping.grid import LEAST_SECONDS, TRAINING_SHARE

# What follows the name of the final run in the name of the folder of the folds.
FOLDS = "-folds"


@dataclass(frozen=True)
class CrossValidation:
    """`base`: the settings of all runs. `folds`: how many. `final`: whether a run on all rows follows them.

    The time of `base` is that of all runs together.
    """

    base: FinetuneConfig
    folds: int
    final: bool

    @property
    def name(self) -> str:
        """The name of the run on all rows."""
        return self.base.run_name

    @property
    def seconds(self) -> float:
        """The time of each run."""
        return round(TRAINING_SHARE * (self.base.budget_seconds or 0) / (self.folds + self.final), 1)

    def named_by_data(self, runs: Path) -> "CrossValidation":
        """This one with a name of its own if nobody has named it and its default name belongs to other data."""
        name = self.base.run or own_name(self.name, self.base.data_paths, runs, FOLDS)
        return replace(self, base=self.base.model_copy(update={"run": name}))

    def config(self, number: int | None) -> FinetuneConfig:
        """The settings of a fold, counted from 1, or with None of the run on all rows."""
        changes: dict[str, Any] = {"budget": f"{self.seconds:g}s"}
        if number is not None:
            data = self.base.data.model_copy(update={"fold": f"{number}/{self.folds}"})
            changes |= {"run": f"{self.name}-fold-{number}", "data": data}
        return self.base.model_copy(update=changes)


def read_plan(arguments: Sequence[str], flags: Mapping[str, Any], folds: int, final: bool) -> CrossValidation:
    """The cross-validation of `[CONFIG.yaml] [KEY=VALUE]...` and flags; KEY=VALUE wins. Raises ConfigError."""
    path, overrides = split_arguments(list(arguments))
    settings = [*flag_overrides(flags), *overrides]
    base = load_config(FinetuneConfig, path, settings)
    if base.budget_seconds is None:
        raise ConfigError("cross-validation needs a time: --budget 20m")
    if base.data.fold is not None:
        raise ConfigError(f"data.fold={base.data.fold}: cross-validation runs all folds; set their number: --folds 5")
    plan = CrossValidation(base, folds, final)
    # Refuses test data: each fold is the test data of its run.
    load_config(FinetuneConfig, path, [*settings, ("data.fold", f"1/{folds}")])
    if plan.seconds < LEAST_SECONDS:
        raise ConfigError(
            f"{folds} folds{' and a run on all rows' if final else ''} in {base.budget} have "
            f"{plan.seconds:.1f} s each, but need {LEAST_SECONDS:g}: take fewer folds, or give a longer --budget"
        )
    return plan
