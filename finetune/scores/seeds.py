"""Mean and deviation over runs that differ by their seed only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mini_llm.engine.config import read_yaml
from mini_llm.engine.report.record import Run

from .predictions import is_pooled

# What may differ between repetitions of one experiment: seeds, the name, and how the run is recorded.
IGNORED = {"seed", "run", "tracking"}
SCORES = ("accuracy", "macro_f1", "mcc", "log_loss", "ece")


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one configuration: each score as (mean, standard deviation with n - 1)."""

    names: list[str]
    scores: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        shown = ", ".join(
            f"{name.replace('_', ' ')} {mean:.4f} +- {sd:.4f}" for name, (mean, sd) in self.scores.items()
        )
        return f"{len(self.names)} seeds ({', '.join(self.names)}): {shown}"


def without_seed(tree: Any) -> Any:
    """Return the configuration without seeds and other keys that do not belong to the experiment."""
    if isinstance(tree, Mapping):
        return {key: without_seed(value) for key, value in tree.items() if key not in IGNORED}
    return tree


def seed_groups(runs: Iterable[Path], alone: bool = False) -> list[SeedGroup]:
    """Group runs by their requested configuration without its seeds; groups of a single run are left out.

    The scores are those of `predict`; `alone`: those of the Transformer without the linear models stored beside it.
    """
    groups: dict[str, list[Run]] = {}
    for path in dict.fromkeys(runs):
        config = next((path / name for name in ("requested.yaml", "config.yaml") if (path / name).is_file()), None)
        if config is not None:
            groups.setdefault(repr(without_seed(read_yaml(config))), []).append(Run(path))
    return [summarise(group, alone) for group in groups.values() if len(group) > 1]


def summarise(runs: Sequence[Run], alone: bool = False) -> SeedGroup:
    """Return mean and deviation of the scores that all runs have."""
    rows = [_own_row(run, alone) for run in runs]
    shared = [name for name in SCORES if all(isinstance(row.get(name), (int, float)) for row in rows)]
    columns = {name: [row[name] for row in rows] for name in shared}
    return SeedGroup([run.name for run in runs], {name: (fmean(x), stdev(x)) for name, x in columns.items()})


def _own_row(run: Run, alone: bool) -> dict[str, Any]:
    """Return the scores of the Transformer, or of its pool with linear models, which has the row after it."""
    rows = [row for row in run.score_rows() if not row.get("baseline")]
    return {} if not rows else rows[-1 if is_pooled(run.path) and not alone else 0]
