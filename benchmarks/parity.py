"""Largest differences between our logits and gradients and those of torch and transformers.

    python -m benchmarks.parity

Runs the layout tests and prints the differences that they found; the tests assert that each is at most 1e-5. They use
tiny random models of several sizes in fp32, without padding and padded on either side. "preset" rows are the files of
configs/model/ after 12 training steps; "base" is the size of Vaswani et al. 2017.
"""

import sys
from collections import defaultdict

import pytest
from rich.console import Console
from rich.table import Table

TESTS = ("tests/model/test_vaswani.py", "tests/model/test_layouts.py", "tests/model/test_presets.py")
COLUMNS = ("ours to theirs", "theirs to ours", "sharded", "cache", "gradients")
# layout: preset with another name
PRESETS = {"marian": "transformer"}


class Figures:
    """A pytest plugin that collects the differences recorded by the `assert_parity` fixture."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "parity":
                family, reference, column, figure = value
                self.seen[PRESETS.get(family, family), reference][column].append(figure)

    def table(self) -> Table:
        table = Table("preset", "reference", *COLUMNS, "checks", title="largest absolute difference, fp32")
        for (preset, reference), figures in sorted(self.seen.items()):
            worst = [f"{max(figures[column]):.1e}" if column in figures else "" for column in COLUMNS]
            table.add_row(preset, reference, *worst, str(sum(map(len, figures.values()))))
        return table


if __name__ == "__main__":
    figures = Figures()
    code = pytest.main([*TESTS, "-q", "--no-header", "--durations=1"], plugins=[figures])
    Console(width=140).print(figures.table())
    sys.exit(code)
