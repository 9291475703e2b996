"""Make smaller variants of a finished run, measure all of them, and say what to deploy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.files import write_json

from ..data import load_examples
from ..examples import Example
from ..predict import Classifier
from ..requested import data_of_run
from .config import read_distil_config
from .distil import distil
from .measure import COLUMNS, Measured, measure, verdict
from .page import write_page
from .variants import write_packed, write_variants

FOLDER = "smaller"
TABLE_WIDTH = 130


def make_smaller(
    run: Path, students: Sequence[Path], with_distillation: bool, budget: str | None, tolerance: float
) -> tuple[list[Measured], str, Path]:
    """Write the variants into RUN/smaller and the table into RUN/tables; return rows, verdict and the page's path.

    Trains a student of the run first, unless there are `students` or it is not wanted. All are measured on the run's
    test split, or without one on its validation split. Raises ConfigError for a directory that is not a run.
    """
    data = data_of_run(run)
    base = Classifier(run)
    if with_distillation and not students and not base.model.config.is_encoder_decoder:
        config = read_distil_config(run, [], {"budget": budget})
        students = [run.parent / config.run_name]
        if not (students[0] / "finished.json").is_file():
            distil(config, run.parent)
    splits = load_examples(data)
    if list(base.names) != splits.names:
        raise ConfigError(f"{run}: the labels of its data ({data.path}) have changed since it was trained")
    directories = write_variants(base, splits, run / FOLDER)
    trained = {run.name: base.directory}
    pooled = f"{run.name} + linear"
    if base.ensemble is not None:
        trained[pooled] = base.directory
    for student in students:
        source, name = Classifier(student).directory, student.resolve().name
        trained[name] = source
        for packing in ("int8", "int4"):
            directories[f"{name}-{packing}"] = write_packed(source, run / FOLDER / f"{name}-{packing}", packing)
    part, examples = ("test", splits.test) if splits.test is not None else ("validation", splits.validation)
    measured = {**trained, **directories}
    rows = measure(measured, *_columns(examples), directories, _columns(splits.validation), [pooled])
    scored_on = f"{len(examples):,} {part} texts"
    words = verdict(rows, tolerance, scored_on)
    cells = [list(row.cells().values()) for row in rows]
    (run / "tables").mkdir(exist_ok=True)
    write_json(run / "tables" / "smaller.json", {"name": "smaller", "step": None, "columns": COLUMNS, "rows": cells})
    return rows, words, write_page(run, run.name, rows, words, scored_on)


def _columns(examples: Sequence[Example]) -> tuple[list[str], np.ndarray]:
    return [example.text for example in examples], np.array([example.label for example in examples])


def print_rows(rows: Sequence[Measured], words: str, page: Path) -> None:
    """Print the table and the verdict."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("classifier", no_wrap=True)
    for heading in ("MB", "weights", "accuracy (95 %)", "difference", "ms a text", "texts/s", "front"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.bytes / 1e6:.2f}",
            f"{row.weights:,}",
            f"{row.accuracy:.1%} ({100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f})",
            f"{100 * row.difference:+.1f} ({100 * row.difference_low:+.1f} to {100 * row.difference_high:+.1f})",
            f"{row.p50_ms:.2f}",
            f"{row.texts_per_second:,.0f}",
            "*" if row.front else "",
        )
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)
    console.print(f"\n{words}\nPage: {page}", markup=False)
