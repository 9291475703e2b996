"""The results of a sweep as a table in the terminal and as one page."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mini_llm.engine.report.charts import MUTED, SERIES, drawing, plain_axes
from mini_llm.engine.report.tables_page import write_tables_page
from mini_llm.engine.sweep.trials import Sweep

# A parameter whose values span more than this factor has a logarithmic axis.
LOGARITHMIC = 8
# A parameter of at most this many values is labelled with them.
FEW = 6
# Columns of a table that is not printed to a terminal.
WIDTH = 250


def swept(sweep: Sweep) -> list[str]:
    """The parameters with more than one value."""
    values = [result.trial.values for result in sweep.results]
    return [key for key in values[0] if len({str(row[key]) for row in values}) > 1]


def table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of text, best first."""
    keys = swept(sweep)
    halving = len({result.round.number for result in sweep.results}) > 1
    columns = [*keys, *(["round"] if halving else []), "seconds", sweep.metric.name, "run"]
    rows = []
    for result in sweep.results:
        value = f"failed (exit code {result.exit_code})" if result.value is None else f"{result.value:.4f}"
        round_number = [str(result.round.number)] if halving else []
        settings = [str(result.trial.values[key]) for key in keys]
        rows.append([*settings, *round_number, f"{result.round.seconds:g}", value, result.run])
    return columns, rows


def print_table(sweep: Sweep) -> None:
    """Print a row per trial, best first."""
    columns, rows = table(sweep)
    shown = Table(box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(shown)


def picture(sweep: Sweep, key: str) -> str:
    """An <svg> of the metric over a parameter; grey: earlier rounds of successive halving."""
    last = max(result.round.number for result in sweep.results)
    points = [(r.trial.values[key], r.value, r.round.number == last) for r in sweep.results if r.value is not None]
    numbers = [float(x) for x, _, _ in points if isinstance(x, (int, float)) and not isinstance(x, bool)]
    numeric = len(numbers) == len(points)
    with drawing(key, f"sweep-{key}") as (figure, svg):
        axes = figure.add_subplot()
        if numeric and min(numbers) > 0 and max(numbers) / min(numbers) > LOGARITHMIC:
            from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        for x, y, final in points:
            axes.plot([x if numeric else str(x)], [y], "o", ms=5, color=SERIES[0] if final else MUTED)
        if numeric and axes.get_xscale() == "linear":
            if len(set(numbers)) <= FEW:
                axes.set_xticks(sorted(set(numbers)))
            else:
                axes.locator_params(axis="x", nbins=FEW)
        axes.set_xlabel(key)
        axes.set_ylabel(sweep.metric.name)
        plain_axes(axes)
        axes.tick_params(which="minor", length=0)
    return svg()


def write_page(sweep: Sweep, folder: Path) -> Path:
    """Write sweep.html into `folder` and return its path."""
    columns, rows = table(sweep)
    best = sweep.best
    lines = [f"{len({r.trial.number for r in sweep.results})} trials, compared by {sweep.metric.name} on validation."]
    if best is not None:
        settings = ", ".join(f"{key}={value}" for key, value in best.trial.values.items())
        lines.append(f"Best: {best.run}, {sweep.metric.name} {best.value:.4f}, with {settings}.")
    pictures = [(f"{sweep.metric.name} by {key}", picture(sweep, key)) for key in swept(sweep)]
    target = folder / "sweep.html"
    write_tables_page(target, sweep.name, lines, pictures, [("Trials, best first", columns, rows)])
    return target
