"""The table and the Pareto picture of smaller classifiers, on one self-contained page, and the picture as a file."""

from collections.abc import Sequence
from pathlib import Path

from mini_llm.engine.report.charts import INK, MUTED, SERIES, drawing, percent, plain_axes
from mini_llm.engine.report.page import page_template
from mini_llm.engine.report.tables_page import standalone
from mini_llm.engine.run.files import write_atomic

from .measure import Measured, pareto_front
from .variants import DESCRIPTIONS

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = {
    "bytes": ("Size and accuracy", "MB on disk", 1e-6),
    "p50_ms": ("Latency and accuracy", "ms a text (P50, alone)", 1.0),
}


def pareto_picture(rows: Sequence[Measured], cost: str) -> str:
    """An <svg> of accuracy with its interval over a cost ("bytes" or "p50_ms", logarithmic).

    The line connects those that no other one beats in both.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    title, label, factor = PICTURES[cost]
    points = [(factor * getattr(row, cost), row.accuracy) for row in rows]
    front = pareto_front(points)
    with drawing(title, f"pareto-{cost}", (7.0, 3.6)) as (figure, svg):
        axes = figure.add_subplot()
        axes.set_xscale("log")
        line = sorted({points[index] for index in front})
        axes.plot(*zip(*line, strict=True), color=SERIES[0], linewidth=1.2, drawstyle="steps-post")
        # Points of equal accuracy stand close together: alternate the height of their numbers.
        order = sorted(range(len(rows)), key=lambda index: points[index])
        for place, index in enumerate(order):
            row, (x, y) = rows[index], points[index]
            color = SERIES[0] if index in front else MUTED
            bar = [[y - row.accuracy_low], [row.accuracy_high - y]]
            axes.errorbar(x, y, bar, color=color, elinewidth=0.8, fmt="o", ms=4.5)
            height = 4 + 9 * (place % 3)
            axes.annotate(str(index + 1), (x, y), (4, height), textcoords="offset points", fontsize=8, color=INK)
        for index, row in enumerate(rows):
            axes.plot([], [], label=f"{index + 1} {row.name}", alpha=0)
        axes.legend(
            frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=0
        )
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(percent)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.1)
        plain_axes(axes)
        axes.tick_params(which="minor", length=0)
    return svg()


def write_page(folder: Path, name: str, rows: Sequence[Measured], words: str, scored_on: str) -> Path:
    """Write smaller.html and pareto.svg into `folder`; return the path of the page."""
    pictures = [(PICTURES[cost][0], pareto_picture(rows, cost)) for cost in PICTURES]
    write_atomic(folder / "pareto.svg", standalone(pictures[0][1]))
    notes = [(key, text) for key, text in DESCRIPTIONS.items() if any(row.name.endswith(key) for row in rows)]
    page = page_template("smaller.html.jinja", TEMPLATES).render(
        name=name, rows=rows, pictures=pictures, verdict=words.splitlines(), scored_on=scored_on, notes=notes
    )
    write_atomic(folder / "smaller.html", page)
    return folder / "smaller.html"
