"""`python -m mini_llm report`: write one self-contained report.html per run, and an index of them.

Files read from a run directory, all optional: config.yaml, command.txt, environment.json, finished.json, lock.json,
metrics.jsonl, timing.jsonl, summary.json and tables/*.json. Known keys of summary.json; others are shown unchanged:

    job_type         "tokenizer" | "pretrain" | "finetune" (written by the Tracker)
    objective        "causal" | "masked" | "classification"
    parameters, tokens, train_seconds
    pretrain         val/loss (nats), val/ppl, val/bpb (bits per byte), val/accuracy (on masked positions if the
                     objective is "masked"); baselines: unigram_loss, unigram_bpb
    finetune         scores: [{"name", "accuracy", "macro_f1", "mcc", "log_loss", "ece", "examples", each also with
                     _low and _high, "baseline": true for baselines}, ...]; the first row is the run itself.
                     temperature, log_loss_calibrated, ece_calibrated, aurc
    tokenizer        vocab_size, bytes_per_token, coverage, byte_fallback (shares of 1), tokens_per_word,
                     byte_baseline_tokens_per_word

Tables {"columns", "rows"}: samples (the last column is the text), confusion (columns: labels; rows: counts by true
label), per_class (name, precision, recall, f1, support), pieces (piece, id, kind); the tables that
classifier_charts.py draws. Others are shown unchanged, but columns NAME, NAME_low, NAME_high in one cell.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mini_llm.engine.all_runs.facts import Facts, facts
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.report.record import RUN_FILES, Run, show, show_date, with_interval
from mini_llm.engine.run.directory import now
from mini_llm.engine.run.files import write_atomic
from mini_llm.engine.run.state import describe, say

# The page of `report A B`, beside the runs.
COMPARISON = "compare.html"
_TILE = 14  # characters; longer values are listed below the tiles


def write_report(path: Path | str) -> Path:
    """Write report.html into a run directory and return its path. Raises ConfigError if it is not a run directory."""
    path = Path(path)
    if not any((path / name).is_file() for name in RUN_FILES):
        raise ConfigError(f"{path}: not a run directory (it has none of {', '.join(RUN_FILES)})")
    from mini_llm.engine.report.charts import draw, panels
    from mini_llm.engine.report.classifier_charts import DRAWN, classifier_charts

    run = Run(path)
    levels = {
        metric: {"unigram entropy": run.summary[f"unigram_{metric}"]}
        for metric in ("loss", "bpb")
        if isinstance(run.summary.get(f"unigram_{metric}"), (int, float))
    }
    charts = []
    for panel in panels(run.rows, levels):
        try:
            charts.append((panel.title, draw(panel)))
        except (ArithmeticError, ValueError) as error:  # matplotlib cannot draw numbers near the largest of a float
            say(f"{path / 'metrics.jsonl'}: no chart of {panel.title} ({describe(error)})")
    figures = run.figures()
    special = {"samples", "confusion", "per_class", "pieces", *DRAWN}
    page = page_template("report.html.jinja").render(
        run=run,
        charts=charts,
        classifier_charts=classifier_charts(run),
        scores=run.scores(),
        figures=[figure for figure in figures if len(figure[1]) <= _TILE],
        details=[figure for figure in figures if len(figure[1]) > _TILE],
        samples=run.table("samples"),
        confusion=_confusion(run.table("confusion")),
        per_class=_text_table(run.table("per_class")),
        pieces=run.table("pieces"),
        others=[
            (name, table) for name in run.table_names if name not in special if (table := _text_table(run.table(name)))
        ],
        config=run.text("config.yaml"),
        environment=_flat_environment(run.environment),
        commit=str(run.environment.get("commit") or ""),
        command=run.text("command.txt"),
        show=show,
    )
    target = path / "report.html"
    write_atomic(target, page)
    return target


def write_index(root: Path | str) -> Path | None:
    """Write index.html into `root` with a row for each run below it that has a report; None if no run has one."""
    root = Path(root)
    runs = [Run(report.parent) for report in sorted(root.glob("*/report.html"))]
    if not runs:
        return None
    groups: dict[str, list[tuple[Run, Facts]]] = {}
    status: dict[str, str] = {}
    for run in runs:
        row = facts(run.path)
        status[run.name] = _progress(run, row)
        groups.setdefault(f"{row.kind}: {row.task}" if row.task else row.kind or "Damaged", []).append((run, row))
    target = root / "index.html"
    page = page_template("index.html.jinja").render(
        groups=sorted(groups.items()),
        status=status,
        comparison=COMPARISON if (root / COMPARISON).is_file() else "",
        time=show_date(now()),
        show=show,
    )
    write_atomic(target, page)
    return target


def _progress(run: Run, row: Facts) -> str:
    """When a run ended, or the step that it has reached."""
    if row.state == "finished":
        return show_date(str(run.finished.get("finished", "")))
    return "" if row.steps is None else f"step {row.steps:,}"


def page_template(name: str, *folders: Path) -> Any:
    """Load the Jinja template `name` from `folders` or report/templates. It escapes values for HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _text_table(table: dict[str, Any] | None) -> dict[str, Any] | None:
    """Cells as (text, is a number); numbers are right-aligned. The ends of an interval join the cell of their value."""
    if table is None:
        return None
    columns = [str(column) for column in table["columns"]]
    found = {name: index for index, name in enumerate(columns)}
    pairs = {name: (found.get(f"{name}_low"), found.get(f"{name}_high")) for name in columns}
    ends = {name: (low, high) for name, (low, high) in pairs.items() if low is not None and high is not None}
    joined = {index for pair in ends.values() for index in pair}
    shown = [index for index in range(len(columns)) if index not in joined]

    def cell(row: list[Any], index: int) -> tuple[str, bool]:
        value, pair = row[index], ends.get(columns[index])
        number = isinstance(value, (int, float))
        if number and pair and all(end < len(row) and isinstance(row[end], (int, float)) for end in pair):
            return with_interval(columns[index], value, row[pair[0]], row[pair[1]]), True
        return show("", value), number

    rows = [[cell(row, i) for i in shown if i < len(row)] for row in table["rows"] if isinstance(row, list)]
    return {"columns": [columns[index].replace("_", " ") for index in shown], "rows": rows}


def _confusion(table: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rows (label, [(count, share of the row)]) of the heat map."""
    if table is None:
        return None
    labels = [str(label) for label in table["columns"]]
    rows = []
    for label, counts in zip(labels, table["rows"], strict=False):
        total = sum(counts) or 1
        rows.append((label, [(count, round(count / total, 3)) for count in counts]))
    return {"labels": labels, "rows": rows, "numbers": len(labels) <= 30}


def _flat_environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(str(item) for item in value)
        if value not in (None, ""):
            rows.append((key.replace("_gb", " (GB)"), str(value)))
    return rows
