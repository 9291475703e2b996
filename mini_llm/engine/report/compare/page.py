"""`python -m mini_llm report A B C`: compare.html, the runs on one page."""

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mini_llm.engine.all_runs.difference import configuration
from mini_llm.engine.all_runs.facts import facts
from mini_llm.engine.errors import UserError
from mini_llm.engine.report.compare.curves import AXES, charts, timeline
from mini_llm.engine.report.page import page_template
from mini_llm.engine.report.record import Run, ScoreTable, score_table, show
from mini_llm.engine.run.files import write_atomic
from mini_llm.stages import load

PREDICTIONS = "tables/predictions.jsonl"
_SAMPLES = 6  # prompts


def write_comparison(paths: Sequence[Path], target: Path) -> Path:
    """Write the page of the runs `paths` to `target` and return it."""
    runs = named_runs(paths)
    reports = [run.path / "report.html" for run in runs]
    page = page_template("compare.html.jinja").render(
        runs=[(run, facts(run.path)) for run in runs],
        links=[quote(os.path.relpath(path, target.parent)) if path.is_file() else "" for path in reports],
        charts=charts([timeline(run) for run in runs]),
        axes=AXES,
        scores=_scores(runs),
        tests=paired_tests(runs),
        samples=side_by_side(runs),
        settings=setting_differences(paths),
        show=show,
    )
    write_atomic(target, page)
    return target


def named_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs; those of the same name are called by their path."""
    runs = [Run(path) for path in paths]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)
    return runs


def _scores(runs: Sequence[Run]) -> list[tuple[str, ScoreTable]]:
    """One table for each task, with its baselines once."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        tasks.setdefault(str(run.summary.get("task") or run.kind), []).extend(run.score_rows())
    found = []
    for task, rows in tasks.items():
        shared = {row.get("name"): row for row in reversed(rows) if row.get("baseline")}
        table = score_table([*(row for row in rows if not row.get("baseline")), *reversed(shared.values())], True)
        if table is not None:
            found.append((task, table))
    return found


def paired_tests(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """(A, B, verdict, figures) for every two classifiers that stored predictions.

    Where their rows differ the verdict is "" and the figures are the reason.
    """
    found = []
    for a, b in combinations([run for run in runs if (run.path / PREDICTIONS).is_file()], 2):
        names = a.name, b.name
        try:
            (pair,), _ = load("finetune", "scores.compare_runs").compare_classifiers([a.path, b.path])
        except UserError as error:
            found.append((*names, "", str(error).partition(". ")[0]))
        else:
            found.append((*names, pair.comparison.verdict(*names), str(pair.comparison)))
    return found


def side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(prompt, [(run, its text)]) for the prompts of the samples, those of most runs first."""
    texts: dict[str, dict[str, str]] = {}
    for run in runs:
        table = run.table("samples")
        if table is None or "prompt" not in table["columns"]:
            continue
        for row in table["rows"]:
            if row:
                texts.setdefault(str(row[table["columns"].index("prompt")]), {}).setdefault(run.name, str(row[-1]))
    order = sorted(texts.items(), key=lambda item: -len(item[1]))
    return [(prompt, list(by_run.items())) for prompt, by_run in order[:_SAMPLES]]


def setting_differences(paths: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """(key, its value in each run) for the settings in which the runs differ."""
    configurations = [configuration(path) for path in paths]
    keys = dict.fromkeys(key for flat in configurations for key in flat)
    rows = [(key, [flat.get(key, "") for flat in configurations]) for key in keys]
    return [(key, [show("", value) for value in values]) for key, values in rows if any(v != values[0] for v in values)]
