"""The result of a ladder: in the terminal, as JSON, as a picture and as a page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mini_llm.engine.report.charts import INK, MUTED, SERIES, drawing, plain_axes
from mini_llm.engine.report.tables_page import standalone, write_tables_page
from mini_llm.engine.run.files import write_atomic, write_json
from mini_llm.engine.run.progress import human_number

from .law import Fit
from .rungs import Rung

TITLE = "Validation loss and compute"
NOTE = (
    "N: all parameters, embeddings included, tied ones once. D: training tokens. C = 6 N D FLOPs. Losses are nats per "
    "token on the validation split at the end of each run; brackets are 95 % intervals (residual "
    "bootstrap; beyond the fitted runs, with the error of a backtest)."
)
RUN_COLUMNS = ("run", "N", "D", "C", "loss", "fitted")
OPTIMAL_COLUMNS = ("C", "best N", "best D", "predicted loss")
# Compute of the rows of the compute-optimal line, as multiples of the largest run's.
MULTIPLES = (1, 10, 100)


@dataclass
class Climb:
    """The fitted runs, the fit, and the held-out run with its measured loss once that is known."""

    name: str
    rungs: Sequence[Rung]
    losses: Sequence[float]
    fit: Fit
    held_out: Rung
    measured: float | None = None

    @property
    def predicted(self) -> tuple[float, float, float]:
        """(loss, low, high) of the held-out run."""
        return self.fit.predict(self.held_out.parameters, self.held_out.tokens)

    def law_in_words(self) -> str:
        law = self.fit.law
        ranges = {name: "{:.3g} to {:.3g}".format(*self.fit.interval(name)) for name in ("E", "alpha", "beta")}
        return (
            f"loss(N, D) = {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}; "
            f"E {ranges['E']}, alpha {ranges['alpha']}, beta {ranges['beta']}"
        )

    def optimum_in_words(self) -> str:
        law = self.fit.law
        share = law.beta / (law.alpha + law.beta)
        return f"compute-optimal: N grows as C^{share:.2f}, D as C^{1 - share:.2f}"

    def prediction_in_words(self) -> str:
        loss, low, high = self.predicted
        size = f"width {self.held_out.width}, N {self.held_out.parameters:,}, D {self.held_out.tokens:,}"
        text = f"held-out run ({size}): predicted loss {loss:.4f} ({low:.4f} to {high:.4f})"
        if self.measured is None:
            return text
        place = "inside" if low <= self.measured <= high else "outside"
        return f"{text}, measured {self.measured:.4f}, {place} the interval"

    def run_rows(self) -> list[list[str]]:
        """One row of text per run, the held-out one last."""
        rows = [self._row(rung, f"{loss:.4f}", rung.name) for rung, loss in zip(self.rungs, self.losses, strict=True)]
        measured = "" if self.measured is None else f"{self.measured:.4f}"
        return [*rows, self._row(self.held_out, measured, f"{self.held_out.name} (held out)")]

    def _row(self, rung: Rung, loss: str, name: str) -> list[str]:
        flops = 6.0 * rung.parameters * rung.tokens
        fitted = float(self.fit.law.loss(rung.parameters, rung.tokens))
        return [name, f"{rung.parameters:,}", f"{rung.tokens:,}", f"{flops:.2e}", loss, f"{fitted:.4f}"]

    def optimal_rows(self) -> list[list[str]]:
        """Compute, and the size, tokens and loss that are the best for it."""
        most = max(6.0 * rung.parameters * rung.tokens for rung in (*self.rungs, self.held_out))
        rows = []
        for flops in (multiple * most for multiple in MULTIPLES):
            parameters, tokens = (float(value) for value in self.fit.law.optimal(flops))
            loss, low, high = self.fit.predict(parameters, tokens)
            best = [f"{flops:.2e}", human_number(parameters), human_number(tokens)]
            rows.append([*best, f"{loss:.3f} ({low:.3f} to {high:.3f})"])
        return rows


def picture(climb: Climb) -> str:
    """An <svg>: loss over compute, a curve per size, the compute-optimal line, and the held-out run."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    law = climb.fit.law
    everything = [*climb.rungs, climb.held_out]
    with drawing(TITLE, "ladder", (7.0, 4.0)) as (figure, svg):
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set_yscale("log")
        widths = list(dict.fromkeys(rung.width for rung in climb.rungs))
        for index, width in enumerate(widths):
            chosen = [(r, loss) for r, loss in zip(climb.rungs, climb.losses, strict=True) if r.width == width]
            size, color = chosen[0][0].parameters, SERIES[index % len(SERIES)]
            tokens = np.geomspace(min(r.tokens for r in everything), max(r.tokens for r in everything), 40)
            axes.plot(6 * size * tokens, law.loss(size, tokens), color=color, linewidth=1)
            points = [(6 * r.parameters * r.tokens, loss) for r, loss in chosen]
            axes.plot(*zip(*points, strict=True), "o", color=color, ms=4.5, label=f"{human_number(size)} parameters")
        work = [6.0 * rung.parameters * rung.tokens for rung in everything]
        flops = np.geomspace(min(work), 3 * max(work), 40)
        axes.plot(flops, law.loss(*law.optimal(flops)), color=MUTED, linestyle=(0, (4, 3)), label="compute-optimal")
        loss, low, high = climb.predicted
        x = work[-1]
        axes.errorbar(x, loss, [[max(0.0, loss - low)], [max(0.0, high - loss)]], color=INK, fmt="_", label="predicted")
        if climb.measured is not None:
            # Hollow, so that the predicted interval shows.
            axes.plot([x], [climb.measured], "D", color=INK, mfc="none", ms=6, label="held out, measured")
        axes.set_xlabel("FLOPs (6 N D)")
        axes.set_ylabel("validation loss (nats)")
        # Losses span less than a decade, for which a logarithmic axis of matplotlib has hardly a label.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        plain_axes(axes)
        axes.tick_params(which="minor", length=0)
    return svg()


def write_climb(climb: Climb, folder: Path) -> None:
    """Write ladder.json, ladder.svg and ladder.html into `folder`."""
    law = climb.fit.law
    loss, low, high = climb.predicted
    content = {
        "parameters": "all, embeddings included, tied ones once",
        "law": {name: [value, *climb.fit.interval(name)] for name, value in asdict(law).items()},
        "runs": [
            {**rung.model_dump(), "loss": value, "fitted": float(law.loss(rung.parameters, rung.tokens))}
            for rung, value in zip(climb.rungs, climb.losses, strict=True)
        ],
        "held_out": {
            **climb.held_out.model_dump(),
            "predicted": loss,
            "predicted_low": low,
            "predicted_high": high,
            "measured": climb.measured,
        },
    }
    write_json(folder / "ladder.json", content)
    svg = picture(climb)
    write_atomic(folder / "ladder.svg", standalone(svg))
    lines = [climb.law_in_words(), climb.optimum_in_words(), climb.prediction_in_words(), NOTE]
    tables = [
        ("Runs", RUN_COLUMNS, climb.run_rows()),
        ("The best size for more compute", OPTIMAL_COLUMNS, climb.optimal_rows()),
    ]
    write_tables_page(folder / "ladder.html", climb.name, lines, [(TITLE, svg)], tables)


def print_climb(climb: Climb, folder: Path) -> None:
    """Print the tables, the law and the prediction."""
    console = Console(highlight=False, soft_wrap=True)
    for columns, rows in ((RUN_COLUMNS, climb.run_rows()), (OPTIMAL_COLUMNS, climb.optimal_rows())):
        table = Table(box=None, pad_edge=False)
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 and column == "run" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for line in (climb.law_in_words(), climb.optimum_in_words(), climb.prediction_in_words()):
        console.print(line, markup=False)
    console.print(f"{folder / 'ladder.html'}: the page", markup=False)
