"""Curves of several runs in one chart, over steps, tokens, FLOPs or seconds; values appear where the pointer is."""

import bisect
import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_llm.engine.report.charts import INK, PERCENT, SERIES, Panel, drawing, panels, percent, plain_axes
from mini_llm.engine.report.record import Run, show
from mini_llm.engine.run.progress import human_number, human_time
from mini_llm.engine.run.state import describe, say

AXES = {"step": "step", "tokens": "tokens read", "flops": "training FLOPs", "seconds": "seconds of training"}
# A look at one run has the rest; these say which run learns more, and how fast.
_METRICS = ("loss", "bpb", "masked_accuracy", "accuracy", "macro_f1", "bleu", "grad_norm", "lr", "tokens_per_second")
_POINTS = 240  # of a drawn curve
_BANDS = 48  # places of the pointer along a chart
_SIZE = (5.6, 3.2)  # inches
_POINTS_PER_INCH = 72
_DASH = (0, (4, 2))
_MOST_MARKERS = 20
# The colors begin again after four runs.
_MARKERS = ("", "s", "^", "D")


@dataclass
class Timeline:
    """What one run had read, computed and taken at each step. An axis that is not known has no values."""

    name: str
    panels: dict[str, Panel]
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens_per_step: float | None = None
    flops_per_token: float | None = None

    def at(self, axis: str, step: float) -> float | None:
        """The value of `axis` at `step`."""
        if axis == "step":
            return step
        if axis == "seconds":
            return self._seconds(step)
        tokens = None if self.tokens_per_step is None else step * self.tokens_per_step
        if axis == "tokens" or tokens is None:
            return tokens
        return None if self.flops_per_token is None else tokens * self.flops_per_token

    def _seconds(self, step: float) -> float | None:
        if not self.steps:
            return None
        index = min(bisect.bisect_left(self.steps, step), len(self.steps) - 1)
        return self.seconds[index]


def timeline(run: Run) -> Timeline:
    """Read the curves of a run, and what it takes to draw them over each axis."""
    clock = {
        row["step"]: float(row["elapsed"])
        for row in run.rows
        if "step" in row and isinstance(row.get("elapsed"), (int, float))
    }
    found = Timeline(run.name, {panel.metric: panel for panel in _panels(run)}, sorted(clock))
    found.seconds = [clock[step] for step in found.steps]
    found.tokens_per_step = _tokens_per_step(run, max(clock, default=0))
    found.flops_per_token = _flops_per_token(run)
    return found


def _panels(run: Run) -> list[Panel]:
    """The charts of one run, also those of a single point, which another run may continue."""
    found = panels(run.rows)
    names = {panel.metric for panel in found}
    # `panels` leaves out what has one point.
    last = [{**row, "step": row["step"] + 1} for row in run.rows if "step" in row]
    for panel in panels([*run.rows, *last]):
        if panel.metric not in names:
            panel.curves = {name: (steps[:1], values[:1]) for name, (steps, values) in panel.curves.items()}
            found.append(panel)
    return found


def _tokens_per_step(run: Run, last: int) -> float | None:
    from mini_llm.engine.all_runs.facts import tokens_read

    tokens, steps = run.summary.get("tokens"), run.summary.get("steps")
    if not isinstance(tokens, (int, float)) or not isinstance(steps, (int, float)) or not steps:
        tokens, steps = tokens_read(run.rows), last
    return tokens / steps if tokens and steps else None


def _flops_per_token(run: Run) -> float | None:
    """As for the MFU where the architecture is known, else 6 per parameter (Kaplan et al. 2020, section 2.1)."""
    from mini_llm.engine.all_runs.facts import DAMAGE, read_config
    from mini_llm.engine.errors import UserError

    parameters = run.summary.get("parameters")
    rough = 6.0 * parameters if isinstance(parameters, (int, float)) else None
    try:
        from mini_llm.engine.flops import flops_per_token
        from mini_llm.model.huggingface.directory import read_config as read_model
        from mini_llm.model.huggingface.layouts import LAYOUTS

        config, theirs = read_config(run.path), read_model(run.path / "model")
        model = LAYOUTS[theirs["model_type"]].read_config(theirs)
        if model.is_encoder_decoder:
            return rough
        if isinstance(config.get("data"), dict):  # a classifier has no vocabulary head
            return flops_per_token(model, int(config["data"]["max_length"]), 0.0)
        share = config["mlm_probability"] if run.summary.get("objective") == "masked" else 1.0
        return flops_per_token(model, config["sizes"]["max_position_embeddings"], share)
    except (*DAMAGE, UserError):
        return rough


def charts(timelines: Sequence[Timeline]) -> list[tuple[str, dict[str, str]]]:
    """(title, {axis: <svg>}) for each metric that a run has, in the order of _METRICS."""
    found = []
    for metric in _METRICS:
        members = [line for line in timelines if metric in line.panels]
        if not any(len(steps) > 1 for line in members for steps, _ in line.panels[metric].curves.values()):
            continue
        drawn = {}
        for axis in AXES:
            try:
                svg = _draw(metric, axis, timelines)
            except (ArithmeticError, ValueError) as error:  # matplotlib cannot draw numbers near the largest of a float
                say(f"no chart of {metric} ({describe(error)})")
                continue
            if svg is not None:
                drawn[axis] = svg
        found.append((members[0].panels[metric].title, drawn))
    return found


@dataclass
class _Curve:
    """A curve of one run as it is drawn: x on the axis, y, and the name in the legend."""

    name: str
    color: str
    marker: str
    dashed: bool
    x: list[float]
    y: list[float]


def _curves(metric: str, axis: str, timelines: Sequence[Timeline]) -> list[_Curve]:
    found = []
    for number, line in enumerate(timelines):
        panel = line.panels.get(metric)
        for name, (steps, values) in (panel.curves if panel else {}).items():
            pairs = [(line.at(axis, step), value) for step, value in zip(steps, values, strict=True)]
            known = [(x, y) for x, y in pairs if x is not None and math.isfinite(y)]
            if not known:
                continue
            x, y = ([*part] for part in zip(*known, strict=True))
            # Training is noisy, and evaluations are what counts: they are drawn as they are, training behind.
            dashed = name.startswith("train") and len(panel.curves if panel else {}) > 1
            label = line.name if not name or len(panel.curves if panel else {}) == 1 else f"{line.name}, {name}"
            color, marker = SERIES[number % len(SERIES)], _MARKERS[number // len(SERIES) % len(_MARKERS)]
            found.append(_Curve(label, color, marker, dashed, *_averaged(x, y, dashed)))
    return found


def _averaged(x: list[float], y: list[float], noisy: bool) -> tuple[list[float], list[float]]:
    """Average neighbours, to at most _POINTS points, or a quarter of them for a noisy curve."""
    size = math.ceil(len(x) / (_POINTS // 4 if noisy else _POINTS))
    groups = range(0, len(x), size)
    return [sum(x[i : i + size]) / len(x[i : i + size]) for i in groups], [
        sum(y[i : i + size]) / len(y[i : i + size]) for i in groups
    ]


def _draw(metric: str, axis: str, timelines: Sequence[Timeline]) -> str | None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    curves = _curves(metric, axis, timelines)
    if not curves:
        return None
    title = f"{metric} by {AXES[axis]}"
    with drawing(title, title, _SIZE) as (figure, svg):
        axes = figure.add_subplot()
        for curve in curves:
            few = len(curve.x) <= _MOST_MARKERS
            marker = curve.marker or ("o" if few else "")
            every = 1 if few else len(curve.x) // 8
            style: dict[str, Any] = {"linewidth": 1.8}
            if curve.dashed:
                style = {"linewidth": 1.1, "linestyle": _DASH, "alpha": 0.75}
            style |= {"color": curve.color, "marker": marker, "markersize": 3.4, "markevery": every}
            # matplotlib leaves names that begin with "_" out of the legend; the page says what is dashed.
            hidden = curve.dashed and curve.name.endswith(", train")
            axes.plot(curve.x, curve.y, label=f"_{curve.name}" if hidden else curve.name, **style)
        axes.set_xlabel(AXES[axis])
        plain_axes(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if metric == "tokens_per_second":
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        elif metric in PERCENT:
            axes.yaxis.set_major_formatter(percent)
        low, high = axes.get_ylim()
        if metric in ("loss", "grad_norm"):
            axes.set_ylim(low, min(high, _without_spikes(curves)))
        if metric in ("lr", "tokens_per_second"):
            axes.set_ylim(0, high)
        axes.legend(frameon=False, fontsize=9.5, labelcolor=INK)
        figure.canvas.draw()
        place = _place(axes, figure)
    return svg().replace("</svg>", f"{_bands(curves, axis, metric, place)}</svg>")


def _without_spikes(curves: Sequence[_Curve]) -> float:
    """An upper end of the axis that single spikes do not raise."""
    highest = [sorted(curve.y)[int(0.99 * (len(curve.y) - 1))] for curve in curves]
    lowest = min(min(curve.y) for curve in curves)
    return max(highest) + 0.06 * (max(highest) - lowest) + 1e-9


@dataclass
class _Place:
    """The frame of a chart in the units of its <svg>, and the functions from data to it."""

    left: float
    right: float
    top: float
    bottom: float
    x: Callable[[float], float]
    y: Callable[[float], float]


def _place(axes: Any, figure: Any) -> _Place:
    """matplotlib counts pixels from below; the <svg> has points from above."""
    height = figure.get_figheight() * _POINTS_PER_INCH
    scale = _POINTS_PER_INCH / figure.dpi
    box = axes.get_window_extent()
    # Copies: the figure is closed when these are called.
    transform = axes.transData.frozen()
    return _Place(
        box.x0 * scale,
        box.x1 * scale,
        height - box.y1 * scale,
        height - box.y0 * scale,
        lambda value: float(transform.transform((value, 0))[0]) * scale,
        lambda value: height - float(transform.transform((0, value))[1]) * scale,
    )


def _bands(curves: Sequence[_Curve], axis: str, metric: str, place: _Place) -> str:
    """Invisible stripes over the chart; the one under the pointer shows the values of all curves there."""
    places = [[place.x(value) for value in curve.x] for curve in curves]
    first, last = max(place.left, min(map(min, places))), min(place.right, max(map(max, places)))
    width = (last - first) / _BANDS or 1.0
    stripes = []
    for number in range(_BANDS):
        middle = first + (number + 0.5) * width
        lines, dots, nearest = [], [], (math.inf, 0.0)
        for curve, across in zip(curves, places, strict=True):
            distance, index = min((abs(value - middle), index) for index, value in enumerate(across))
            # Half the distance of its points: a curve ends where its run ends.
            reach = (max(across) - min(across)) / max(1, len(across) - 1) / 2 + 1
            if distance > max(width, reach):
                continue
            lines.append(f"{curve.name}: {show(metric, curve.y[index])}")
            height = place.y(curve.y[index])
            if place.top <= height <= place.bottom:
                dots.append(f'<circle cx="{across[index]:.1f}" cy="{height:.1f}" r="3"/>')
            nearest = min(nearest, (distance, curve.x[index]))
        if lines:
            head = f"{AXES[axis]} {_at(axis, nearest[1])}"
            stripes.append(_stripe(middle, width, place, [head, *lines], dots))
    return "".join(stripes)


def _at(axis: str, value: float) -> str:
    if axis == "seconds":
        return human_time(value)
    if axis == "flops":
        return f"{value:.2e}"
    return f"{value:,.0f}" if axis == "step" else human_number(value)


def _stripe(middle: float, width: float, place: _Place, texts: list[str], dots: list[str]) -> str:
    # About the width of a letter of 10.5 pixels.
    box = 5.7 * max(map(len, texts)) + 10
    left = middle + 6 if middle + 6 + box <= place.right else max(place.left, middle - 6 - box)
    rows = "".join(
        f'<text x="{left + 5:.1f}" y="{place.top + 14 + 14 * row:.1f}">{html.escape(text)}</text>'
        for row, text in enumerate(texts)
    )
    size = f'height="{place.bottom - place.top:.1f}"'
    return (
        f'<g class="at"><rect x="{middle - width / 2:.1f}" y="{place.top:.1f}" width="{width:.1f}" {size}/>'
        f'<g class="value"><path d="M{middle:.1f} {place.top:.1f}V{place.bottom:.1f}"/>{"".join(dots)}'
        f'<rect class="box" x="{left:.1f}" y="{place.top:.1f}" width="{box:.1f}" height="{14 * len(texts) + 7}"/>'
        f"{rows}</g></g>"
    )
