"""Train the trials of a sweep, compare them on validation, and train the winner once more with its test data.

runs/NAME-trials/        config.yaml, tables/sweep.json: the results
runs/NAME-trials/TRIAL/  one run per trial, without scores
runs/NAME/               the final run: the chosen settings, scored on the test data
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console

from mini_llm.engine.config import build_config
from mini_llm.engine.distributed.processes import start_processes
from mini_llm.engine.loop import train
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.settings import HARMLESS
from mini_llm.engine.tracking.tracker import Tracker

from ..config import FinetuneConfig
from ..data import load_examples
from ..examples import Splits
from ..pretrained import find_pretrained
from ..requested import check_single_label
from ..run import RUNS, finetune
from ..tasks.registry import task_name
from ..training import train_classifier
from .grid import TRIALS, Sweep, trial_name


@dataclass(frozen=True)
class Setting:
    """The validation metrics of the trials that differ by their seed only; `metric` is what chooses."""

    values: dict[str, str]
    seeds: list[str]
    metrics: list[dict[str, float]]
    metric: str

    @property
    def numbers(self) -> list[float]:
        return [row[f"val/{self.metric}"] for row in self.metrics]

    @property
    def merit(self) -> float:
        """The mean over seeds, larger is better."""
        return float(np.mean(self.numbers)) * (-1 if self.metric == "loss" else 1)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds, None for a single one."""
        return float(np.std(self.numbers, ddof=1)) if len(self.numbers) > 1 else None

    def best_trial(self) -> dict[str, str]:
        """The values of its best seed."""
        sign = -1 if self.metric == "loss" else 1
        best = int(np.argmax([sign * number for number in self.numbers]))
        return {**self.values, **({"seed": self.seeds[best]} if self.seeds[best] else {})}


def run_sweep(sweep: Sweep, runs: Path = RUNS) -> tuple[list[Setting], dict[str, float]]:
    """Run or resume the sweep; return the settings, best first, and the scores of the final run.

    Raises the errors of mini_llm.engine.errors.
    """
    sweep = sweep.named_by_data(runs)
    settings = run_trials(sweep, runs)
    trial = settings[0].best_trial()
    final = sweep.config(trial).model_copy(update={"run": sweep.name})
    console = Console(stderr=True, quiet=not PartialState().is_main_process, soft_wrap=True)
    console.print(f"chosen on validation: {trial_name(trial)}; trained again as {runs / sweep.name} and scored once")
    return settings, finetune(final, runs)


def run_trials(sweep: Sweep, runs: Path = RUNS) -> list[Setting]:
    """Train the trials that are not finished yet; return the settings, best first. Test data are not read."""
    check_single_label(task_name(sweep.base), sweep.base.data.path)
    processes = start_processes(sweep.base.runtime)
    main = processes.is_main_process
    console = Console(stderr=True, quiet=not main, soft_wrap=True)
    folder = runs / f"{sweep.name}{TRIALS}"
    tree = {
        "grid": [f"{key}={','.join(values)}" for key, values in sweep.grid.items()],
        **sweep.base.model_dump(mode="json"),
    }
    with RunDirectory(folder, main_process=main) as directory:
        for note in directory.compare_config(tree, HARMLESS):
            console.print(note, markup=False)
        directory.record(tree, "finetune")
        splits: dict[str, Splits] = {}
        trials, found = sweep.trials(), []
        for number, trial in enumerate(trials, start=1):
            config = sweep.config(trial)
            console.print(f"trial {number} of {len(trials)}: {trial_name(trial)}, {config.budget}", markup=False)
            key = config.data.model_dump_json()
            if key not in splits:
                with processes.main_process_first():
                    splits = {key: load_examples(config.data, with_test=False)}
                for note in splits[key].notes:
                    console.print(note, markup=False)
            found.append(run_trial(config, splits[key], folder, processes, console))
        settings = group_by_setting(trials, found, sweep.base.metric)
        if main:
            record(folder, settings)
            directory.finish({})
    return settings


def run_trial(
    config: FinetuneConfig, splits: Splits, folder: Path, processes: PartialState, console: Console
) -> dict[str, float]:
    """Train one trial, or read what it reached; return the validation metrics of its weights."""
    main = processes.is_main_process
    tree = config.model_dump(mode="json")
    with RunDirectory(folder / config.run_name, main_process=main) as run:
        for note in run.compare_config(tree, HARMLESS):
            console.print(note, markup=False)
        if run.finished:
            return run.finished["scores"]
        tree = run.as_requested(tree, HARMLESS)
        config = build_config(FinetuneConfig, tree, str(run.path))
        run.record(tree, "finetune")
        metrics: dict[str, float] = {}

        def remember(*arguments: Any, **options: Any) -> dict[str, float]:
            metrics.update(train(*arguments, **options))
            return metrics

        source = find_pretrained(Path(config.model))
        with Tracker(run.path, config.tracking, "finetune", tree, main, start=source) as tracker:
            train_classifier(config, source, splits, processes, run, tracker, console, remember)
            tracker.summary(metrics)
        run.finish(metrics)
        processes.wait_for_everyone()
    return metrics


def group_by_setting(
    trials: Sequence[dict[str, str]], metrics: Sequence[dict[str, float]], metric: str
) -> list[Setting]:
    """The trials grouped over seeds, best mean first; of equal means the one with the lowest loss."""
    groups: dict[str, list[tuple[str, dict[str, float]]]] = defaultdict(list)
    for trial, row in zip(trials, metrics, strict=True):
        values = {key: value for key, value in trial.items() if key != "seed"}
        groups[json.dumps(values)].append((trial.get("seed", ""), row))
    settings = [
        Setting(json.loads(values), [seed for seed, _ in rows], [row for _, row in rows], metric)
        for values, rows in groups.items()
    ]
    return sorted(settings, key=lambda s: (-s.merit, np.mean([row["val/loss"] for row in s.metrics])))


def record(folder: Path, settings: Sequence[Setting]) -> None:
    """Write tables/sweep.json: a row per setting, best first."""
    keys = list(settings[0].values)
    metric = settings[0].metric
    columns = [*keys, "seeds", f"validation_{metric}_mean", "deviation", "lowest", "highest"]
    rows = [
        [
            *setting.values.values(),
            ", ".join(filter(None, setting.seeds)) or len(setting.seeds),
            float(np.mean(setting.numbers)),
            setting.deviation,
            min(setting.numbers),
            max(setting.numbers),
        ]
        for setting in settings
    ]
    (folder / "tables").mkdir(exist_ok=True)
    write_json(folder / "tables" / "sweep.json", {"name": "sweep", "step": None, "columns": columns, "rows": rows})


def print_settings(settings: Sequence[Setting]) -> None:
    """Print a row per setting, best first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in (*settings[0].values, "seeds", f"validation {settings[0].metric}"):
        table.add_column(heading)
    for setting in settings:
        deviation = "" if setting.deviation is None else f" +- {setting.deviation:.4f}"
        seeds = ", ".join(filter(None, setting.seeds)) or "1"
        table.add_row(*setting.values.values(), seeds, f"{np.mean(setting.numbers):.4f}{deviation}")
    Console(highlight=False, quiet=not PartialState().is_main_process).print(table)
