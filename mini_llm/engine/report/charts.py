"""Curves of a run as inline SVG that takes its colours from the page: one picture for light, dark and print."""

import html
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Stand-ins that matplotlib can draw with; the page's CSS variables replace them in the SVG.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--grid)",
    "#a10001": "var(--series-1)",
    "#a20002": "var(--series-2)",
    "#a30003": "var(--series-3)",
    "#a40004": "var(--series-4)",
}
_INK, _MUTED, _GRID, *_SERIES = _COLOURS
_MOST_POINTS = 800
_MOST_MARKERS = 60
_SIZE = (5.6, 2.7)  # inches

# Metric (the name after the last "/") -> title, in the order of the page. Others follow by name.
TITLES = {
    "loss": "Loss (nats)",
    "bpb": "Bits per byte",
    "accuracy": "Accuracy",
    "masked_accuracy": "Masked accuracy",
    "macro_f1": "Macro F1",
    "mcc": "Matthews correlation",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Throughput (tokens/s)",
    "mfu": "Share of the matrix-product ceiling (MFU)",
}
_PERCENT = {"accuracy", "masked_accuracy", "mfu"}
# Perplexity is the loss again, on a scale that hides its end.
_NO_CHART = {"step", "elapsed", "count", "seconds", "ppl"}
_FROM_ZERO = {"lr", "tokens_per_second", "mfu"}
_EXACT = {"lr"}


@dataclass
class Panel:
    """One chart: curves (steps, values) by name, and level lines to compare with."""

    metric: str
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return TITLES.get(self.metric, self.metric.replace("_", " "))


def panels(rows: Sequence[Mapping[str, Any]], levels: Mapping[str, Mapping[str, float]] | None = None) -> list[Panel]:
    """Group the numbers of metrics.jsonl and timing.jsonl rows: "train/loss" and "val/loss" share a panel.

    `levels` maps a metric to named level lines. A panel needs a curve of two points; beside it a single one is shown.
    """
    found: dict[str, Panel] = {}
    for row in rows:
        for key, value in row.items():
            series, _, metric = key.rpartition("/")
            if metric in _NO_CHART or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            panel = found.setdefault(metric, Panel(metric))
            steps, values = panel.curves.setdefault(series, ([], []))
            steps.append(row.get("step", len(steps)))
            values.append(value)
    for panel in found.values():
        panel.levels = dict((levels or {}).get(panel.metric, {}))
    order = list(TITLES)
    shown = [panel for panel in found.values() if any(len(steps) > 1 for steps, _ in panel.curves.values())]
    return sorted(shown, key=lambda p: (order.index(p.metric) if p.metric in order else len(order), p.metric))


def draw(panel: Panel) -> str:
    """The panel as an <svg> element without a fixed size."""
    import matplotlib

    # The Agg figure class alone: no window system, and no state shared with the caller's pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    style = {
        "svg.fonttype": "none",
        "text.parse_math": False,
        # Ids are hashed from this: they must not meet those of another chart on the page.
        "svg.hashsalt": panel.metric,
        "font.size": 9,
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _MUTED,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "text.color": _INK,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        # Few points (an evaluation) are drawn over many (each step), in the page's fixed colours for each.
        for name, (steps, values) in sorted(panel.curves.items(), key=lambda item: -len(item[1][0])):
            _draw_curve(axes, name, steps, values, _SERIES[_colour(name)], smooth=panel.metric not in _EXACT)
        for name, level in panel.levels.items():
            axes.axhline(level, color=_MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=name)
        axes.set_xlabel("step")
        axes.grid(True, color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if panel.metric in _PERCENT:
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
        elif panel.metric == "tokens_per_second":
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        elif panel.metric == "lr":
            axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        if panel.metric in _FROM_ZERO:
            axes.set_ylim(0, 1.08 * max(max(values) for _, values in panel.curves.values()) or 1)
        if len(panel.curves) + len(panel.levels) > 1:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), panel.title)


def _draw_curve(
    axes: Any, name: str, steps: list[float], values: list[float], colour: str, smooth: bool = True
) -> None:
    steps, values = _thin(steps, values)
    if len(values) <= _MOST_MARKERS:
        axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3.2, label=name)
    elif smooth:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(steps, _smooth(values), color=colour, linewidth=1.8, label=name)
    else:
        axes.plot(steps, values, color=colour, linewidth=1.8, label=name)


def _colour(series: str) -> int:
    return {"train": 0, "val": 1, "validation": 1, "": 0, "timing": 0, "test": 2}.get(series, 3)


def _thin(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """At most _MOST_POINTS points: means of equal stretches."""
    size = math.ceil(len(steps) / _MOST_POINTS)
    if size <= 1:
        return steps, values
    starts = range(0, len(steps), size)
    pieces = [(steps[i : i + size], values[i : i + size]) for i in starts]
    return [sum(s) / len(s) for s, _ in pieces], [sum(v) / len(v) for _, v in pieces]


def _smooth(values: list[float]) -> list[float]:
    """Mean over a fortieth of the curve around each point, narrower near the ends: it neither lags nor leads."""
    reach = max(1, len(values) // 80)
    sums = [0.0, *itertools.accumulate(values)]
    smooth = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        smooth.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return smooth


def _inline(svg: str, title: str) -> str:
    """Only the <svg> element: no XML head, metadata or name space addresses; colours and font are the page's."""
    svg = svg[svg.index("<svg") :]
    head, _, body = svg.partition(">")
    head = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Several charts share the page: keep the ids that are referred to (hashed per chart) and no others.
    body = re.sub(r' id="(?:[a-z0-9]+_\d+|matplotlib\.axis_\d+)"', "", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    svg = f"{head}>{body}"
    for stand_in, variable in _COLOURS.items():
        svg = svg.replace(stand_in, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
