"""Training curves as inline SVG. Colors are CSS variables of the page, which has light, dark and print themes."""

import html
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Placeholder colors for matplotlib; CSS variables of the page replace them in the SVG.
_COLORS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--grid)",
    "#a10001": "var(--series-1)",
    "#a20002": "var(--series-2)",
    "#a30003": "var(--series-3)",
    "#a40004": "var(--series-4)",
}
INK, MUTED, GRID, *SERIES = _COLORS
# Marks the training steps of CLM warm-up, whose loss is that of another objective.
_WARM_UP, WARM_UP_SERIES = "train/clm", "train, next token"
_MOST_POINTS = 800
_MOST_MARKERS = 60
_SIZE = (5.6, 3.0)  # inches; on a phone 1 point of text is 0.8 pixels

# Metric (the name after the last "/") -> title, in page order. Other metrics follow by name.
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
PERCENT = {"accuracy", "masked_accuracy", "mfu"}
# Perplexity shows the same as the loss, on a scale that hides the end of the curve.
_NO_CHART = {"step", "elapsed", "count", "seconds", "ppl"}
_FROM_ZERO = {"lr", "tokens_per_second", "mfu"}
_EXACT = {"lr"}


@dataclass
class Panel:
    """One chart: curves (steps, values) by name, and lines by name: `levels` are horizontal, `changes` are steps."""

    metric: str
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    changes: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return TITLES.get(self.metric, self.metric.replace("_", " "))


def panels(rows: Sequence[Mapping[str, Any]], levels: Mapping[str, Mapping[str, float]] | None = None) -> list[Panel]:
    """Group the numbers of metrics.jsonl and timing.jsonl rows: "train/loss" and "val/loss" share a panel.

    levels: horizontal lines by metric and name. A panel needs at least one curve with two points.
    """
    found: dict[str, Panel] = {}
    warm_up = max((row.get("step", 0) for row in rows if row.get(_WARM_UP)), default=0)
    for row in rows:
        for key, value in row.items():
            series, _, metric = key.rpartition("/")
            if metric in _NO_CHART or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            panel = found.setdefault(metric, Panel(metric))
            if row.get(_WARM_UP) and metric == "loss":
                series = WARM_UP_SERIES
            steps, values = panel.curves.setdefault(series, ([], []))
            steps.append(row.get("step", len(steps)))
            values.append(value)
    for panel in found.values():
        panel.levels = dict((levels or {}).get(panel.metric, {}))
        steps = [step for name, (steps, _) in panel.curves.items() if name == "train" for step in steps]
        if 0 < warm_up < max(steps, default=0) and panel.metric in ("loss", "grad_norm"):
            panel.changes = {"from here on masked tokens": warm_up + 0.5}
    order = list(TITLES)
    shown = [panel for panel in found.values() if any(len(steps) > 1 for steps, _ in panel.curves.values())]
    return sorted(shown, key=lambda p: (order.index(p.metric) if p.metric in order else len(order), p.metric))


def draw(panel: Panel) -> str:
    """Draw the panel as an <svg> element without a fixed size."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with drawing(panel.title, panel.metric) as (figure, svg):
        axes = figure.add_subplot()
        # Draw curves with few points (evaluations) last, over those with many (training steps).
        for name, (steps, values) in sorted(panel.curves.items(), key=lambda item: -len(item[1][0])):
            _draw_curve(axes, name, steps, values, SERIES[_color(name)], smooth=panel.metric not in _EXACT)
        for name, level in panel.levels.items():
            axes.axhline(level, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=name)
        for name, step in panel.changes.items():
            axes.axvline(step, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), label=name)
        axes.set_xlabel("step")
        plain_axes(axes)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if panel.metric in PERCENT:
            axes.yaxis.set_major_formatter(percent)
        elif panel.metric == "tokens_per_second":
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        elif panel.metric == "lr":
            axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        if panel.metric in _FROM_ZERO:
            axes.set_ylim(0, 1.08 * max(max(values) for _, values in panel.curves.values()) or 1)
        if len(panel.curves) + len(panel.levels) + len(panel.changes) > 1:
            axes.legend(frameon=False, fontsize=10, labelcolor=INK)
    return svg()


@contextmanager
def drawing(title: str, salt: str, size: tuple[float, float] = _SIZE) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Yield a matplotlib figure of `size` inches in the style of the page, and a function for its <svg> afterwards.

    salt: hashed into the ids of elements, so that they differ from those of other charts on the page.
    """
    import matplotlib

    # Use the Agg canvas directly: it needs no window system and shares no state with the caller's pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "svg.hashsalt": salt,
        "font.size": 11,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.titlecolor": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
    }
    text = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, lambda: _inline(text.getvalue(), title)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})


def plain_axes(axes: Any) -> None:
    """Grid lines instead of a frame and ticks."""
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)


def percent(share: float, _: object = None) -> str:
    return f"{100 * share:.4g}%"


def _draw_curve(axes: Any, name: str, steps: list[float], values: list[float], color: str, smooth: bool = True) -> None:
    steps, values = _thin(steps, values)
    if len(values) <= _MOST_MARKERS:
        axes.plot(steps, values, color=color, linewidth=1.8, marker="o", markersize=3.2, label=name)
    elif smooth:
        axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
        axes.plot(steps, _smooth(values), color=color, linewidth=1.8, label=name)
    else:
        axes.plot(steps, values, color=color, linewidth=1.8, label=name)


def _color(series: str) -> int:
    return {"train": 0, "val": 1, "validation": 1, "": 0, "timing": 0, "test": 2}.get(series, 3)


def _thin(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Average groups of equal size, to at most _MOST_POINTS points."""
    size = math.ceil(len(steps) / _MOST_POINTS)
    if size <= 1:
        return steps, values
    starts = range(0, len(steps), size)
    groups = [(steps[i : i + size], values[i : i + size]) for i in starts]
    return [sum(s) / len(s) for s, _ in groups], [sum(v) / len(v) for _, v in groups]


def _smooth(values: list[float]) -> list[float]:
    """Centered moving average over a fortieth of the curve, with a narrower window near the ends."""
    reach = max(1, len(values) // 80)
    sums = [0.0, *itertools.accumulate(values)]
    smooth = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        smooth.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return smooth


def _inline(svg: str, title: str) -> str:
    """Reduce to the <svg> element: no XML header, metadata or namespace URLs; colors and font come from the page."""
    svg = svg[svg.index("<svg") :]
    head, _, body = svg.partition(">")
    head = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Charts share the page: keep only ids that are referenced, which are hashed per chart.
    body = re.sub(r' id="(?:[a-z0-9]+_\d+|matplotlib\.axis_\d+)"', "", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    svg = f"{head}>{body}"
    for stand_in, variable in _COLORS.items():
        svg = svg.replace(stand_in, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
