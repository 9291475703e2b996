"""Charts of a scored classifier: reliability, risk-coverage and precision-recall curves, from its tables.

reliability       stage ("before", "after"), probability, accuracy, rows: one row per bin
risk_coverage     coverage, risk, threshold
precision_recall  name, recall, precision: the points of one curve per class
"""

from collections.abc import Sequence
from typing import Any

from mini_llm.engine.report.charts import INK, MUTED, SERIES, drawing, percent, plain_axes
from mini_llm.engine.report.record import Run
from mini_llm.engine.run.state import describe, say

DRAWN = {"reliability", "risk_coverage", "precision_recall"}
_SQUARE = (5.6, 3.4)  # inches
_COLUMNS = 4  # precision-recall curves side by side
_NAME = 22  # characters of a class name above its curve


def classifier_charts(run: Run) -> list[tuple[str, str, str]]:
    """Return (title, <svg>, note) of each chart whose table the run has. A damaged table has no chart."""
    charts = []
    for name, draw in (
        ("reliability", _reliability),
        ("risk_coverage", _risk_coverage),
        ("precision_recall", _precision_recall),
    ):
        table = run.table(name)
        if table is None or not table["rows"]:
            continue
        try:
            charts.append(draw(table["rows"]))
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            say(f"{run.path}/tables/{name}.json: no chart of it ({describe(error)})")
    return charts


def _reliability(rows: Sequence[Sequence[Any]]) -> tuple[str, str, str]:
    title, total = "Reliability", sum(row[3] for row in rows if row[0] == "before")
    with drawing(title, "reliability", _SQUARE) as (figure, svg):
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
        for stage, color, label in (
            ("before", SERIES[1], "before temperature scaling"),
            ("after", SERIES[0], "after temperature scaling"),
        ):
            chosen = [row for row in rows if row[0] == stage]
            x, y, counts = ([row[index] for row in chosen] for index in (1, 2, 3))
            axes.plot(x, y, color=color, linewidth=1.4, label=label)
            axes.scatter(x, y, s=[6 + 160 * count / total for count in counts], color=color, alpha=0.7, linewidths=0)
        _unit_axes(axes, "probability of the predicted label", "accuracy")
        axes.set_xlim(min(row[1] for row in rows) - 0.05, 1.02)
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    return title, svg(), "Below the diagonal: too sure. The area of a dot is its share of the rows."


def _risk_coverage(rows: Sequence[Sequence[Any]]) -> tuple[str, str, str]:
    title = "Risk and coverage"
    with drawing(title, "risk_coverage", _SQUARE) as (figure, svg):
        axes = figure.add_subplot()
        coverage, risk, _ = zip(*rows, strict=True)
        axes.plot(coverage, risk, color=SERIES[0], linewidth=1.8, label="error rate of the rows answered")
        axes.axhline(risk[-1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="error rate of all rows")
        _unit_axes(axes, "share of rows answered, most confident first", "share of answers that are wrong")
        axes.set_ylim(0, 1.15 * max(*risk, 0.01))
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="best")
    return title, svg(), "What is gained by not answering where the classifier is unsure."


def _precision_recall(rows: Sequence[Sequence[Any]]) -> tuple[str, str, str]:
    title, names = "Precision and recall by class", list(dict.fromkeys(row[0] for row in rows))
    columns = min(_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    with drawing(title, "precision_recall", (max(_SQUARE[0], 1.5 * columns), max(_SQUARE[1], 1.55 * lines))) as (
        figure,
        svg,
    ):
        for number, name in enumerate(names, start=1):
            axes = figure.add_subplot(lines, columns, number)
            points = [row[1:3] for row in rows if row[0] == name]
            axes.plot(*zip(*points, strict=True), color=SERIES[0], linewidth=1.6)
            first = (number - 1) % columns == 0
            _unit_axes(axes, "recall" if number > len(names) - columns else "", "precision" if first else "")
            text = str(name)
            axes.set_title(text if len(text) <= _NAME else text[: _NAME - 3] + "...", fontsize=8.5, color=INK)
            axes.set_xticks([0, 0.5, 1])
            axes.set_yticks([0, 0.5, 1])
            axes.tick_params(labelsize=7.5, labelleft=first)
    return title, svg(), "Each class against the rest; the classes with most examples."


def _unit_axes(axes: Any, x: str, y: str) -> None:
    """Both axes from 0 to 100 %."""
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.xaxis.set_major_formatter(percent)
    axes.yaxis.set_major_formatter(percent)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    plain_axes(axes)
    axes.tick_params(axis="x", pad=7)  # apart from the 0 % of the other axis
