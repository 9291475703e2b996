"""Run a task: read the rows, train, score the saved model beside baselines."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from mini_llm.engine.loop import train
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.tracking.tracker import Tracker

from ..config import FinetuneConfig
from ..scores.intervals import few_rows_advice
from .metrics.bootstrap import scores_with_intervals
from .model import TaskModel
from .reading import read_parts
from .registry import TASKS, check_family
from .task import Parts, Row, Task
from .training import train_task

ERRORS = 100  # rows of the table of mistakes


def run_task(
    name: str,
    config: FinetuneConfig,
    source: Path,
    processes: PartialState,
    run: RunDirectory,
    tree: dict[str, Any],
    console: Console,
    loop: Callable[..., dict[str, float]] = train,
) -> dict[str, float]:
    """Train task `name` and return the final scores; {} on other processes than the first, and in a replay."""
    main = processes.is_main_process
    task = TASKS[name](config.data)
    check_family(source, task)
    with processes.main_process_first():
        parts = read_parts(task)
    console.print(f"task: {name}, {task.columns.label} of {task.columns.text} in {config.data.path}", markup=False)
    for note in parts.notes:
        console.print(note, markup=False)
    with Tracker(run.path, config.tracking, "finetune", tree, main and loop is train, start=source) as tracker:
        train_task(task, config, source, parts, processes, run, tracker, console, loop)
        if not main or loop is not train:
            return {}
        scores = score_run(task, config, parts, run, tracker, console)
        run.finish(scores)
        return scores


def score_run(
    task: Task, config: FinetuneConfig, parts: Parts, run: RunDirectory, tracker: Tracker, console: Console
) -> dict[str, float]:
    """Score run.model and the baselines on the test rows, or on validation if there are none."""
    part, rows = parts.scored
    model = TaskModel(run.path)
    predictions = model.predict(rows, config.evaluation_batch_size)
    found = scores_with_intervals(task.statistics(rows, predictions), task.scores)
    table: list[dict[str, Any]] = [{"name": run.path.name, **found, "examples": len(rows), "baseline": False}]
    for baseline in task.baselines(parts, config.seed):
        statistics = task.statistics(rows, baseline.predictions)
        row = scores_with_intervals(statistics, task.scores)
        table.append({"name": baseline.name, **row, "examples": len(rows), "baseline": True})
    for row in table:
        name = f", {row['name']}" if row["baseline"] else ""
        console.print(f"{part}, {len(rows):,} rows{name}: {score_line(row, task.metrics)}", markup=False)
    if parts.test is None and (few := few_rows_advice(len(rows), len(rows) + len(parts.train))):
        console.print(few, markup=False)
    sign = -1 if task.metric in task.smaller_is_better else 1
    best = max(table[1:], key=lambda row: sign * row[task.metric])
    if sign * best[task.metric] >= sign * found[task.metric]:
        console.print(
            f"{best['name']} is as good here ({task.metric} {best[task.metric]:.3f} against {found[task.metric]:.3f}): "
            "use it, or give this model a longer budget or a better pretrained model",
            markup=False,
        )
    tracker.table("errors", ["source", "text", "label", "predicted"], mistakes(task, rows, predictions))
    numbers = {f"{part}/{name}": value for name, value in found.items()}
    tracker.summary(
        {
            **numbers,
            "objective": task.name,
            "scores": table,
            "scored_on": part,
            "task": f"{task.name} in {config.data.path}",
            "labels": task.labels,
            "pretrained": config.model,
            "weights": config.weights,
            "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
            "model_directory": str(run.model),
        }
    )
    tracker.artifact(run.path.name, "model", run.model, numbers)
    return numbers


def score_line(scores: Mapping[str, float], metrics: Sequence[str]) -> str:
    """Return 'entity_f1 0.912 (95 %: 0.887 to 0.934), ...'."""
    parts = []
    for name in metrics:
        low, high = scores.get(f"{name}_low"), scores.get(f"{name}_high")
        parts.append(f"{name} {scores[name]:.3f}" + (f" (95 %: {low:.3f} to {high:.3f})" if low is not None else ""))
    return ", ".join(parts)


def mistakes(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> list[list[Any]]:
    """Return [place, text, label, prediction] of the first rows whose main score is not perfect."""
    found = []
    for row, prediction in zip(rows, predictions, strict=True):
        wrong = task.wrong(row, prediction)
        if wrong is not None:
            found.append([row.place, row.text[:400], *wrong])
        if len(found) == ERRORS:
            break
    return found
