"""`python -m finetune predict` and `score` for models of a task."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mini_llm.corpus.parts import find_scored
from mini_llm.corpus.report import ReadReport
from mini_llm.engine.errors import ConfigError, DataError
from mini_llm.engine.run.files import plain
from mini_llm.engine.run.heap import return_freed_memory
from mini_llm.engine.run.partial import PartialOutput

from ..predict import BATCHES_PER_CHUNK, open_output
from ..predicting.output import LabelState, Layout, OutputFormat, Writable, csv_value, json_value
from ..predicting.progress import RowProgress
from ..predicting.rows import InputFormat, InputRow, OnNull, characters, is_stream, iter_chunks, iter_input
from ..predicting.score import with_flags
from .metrics.bootstrap import scores_with_intervals
from .model import TaskModel
from .reading import is_readable, read_rows
from .run import score_line
from .task import Row


def predict_task(
    directory: Path,
    source: str,
    text: str | None = None,
    text_pair: str | None = None,
    input_format: InputFormat | None = None,
    output: Path | None = None,
    output_format: OutputFormat | None = None,
    batch_size: int = 32,
    on_null: OnNull | None = None,
    encoding: str | None = None,
) -> int:
    """Write every row of `source` with its prediction, in order, as finetune.predict.predict does for classes.

    text, text_pair: columns; None: those of training. Return the number of rows written. Raises CheckpointError,
    ConfigError, DataError.
    """
    if output_format is None:
        output_format = "csv" if output is not None and output.suffix.lower() == ".csv" else "jsonl"
    model = TaskModel(directory, {"text": text, "text_pair": text_pair})
    column = model.task.input_column
    report = ReadReport()
    rows = iter_input(source, column, input_format, on_null, report, encoding)
    if output is not None and not is_stream(source) and output.exists() and output.samefile(os.path.expanduser(source)):
        raise ConfigError(f"--output {output} is the input file; choose another name")
    options = [column, text_pair, output_format, on_null, encoding]
    total = None if is_stream(source) else os.path.getsize(os.path.expanduser(source))
    with open_output(output, is_stream(source), model.directory, source, options) as (file, partial):
        writer = TaskWriter(file, output_format, model.task.outputs())
        before = 0
        if partial is not None and partial.state.written:
            before = partial.state.written
            print(f"{partial.partial}: continues after row {partial.state.row:,}", file=sys.stderr)
            writer.layout, model.encoder.truncated = partial.state.layout, partial.state.truncated
        if partial is not None:
            rows = partial.skip_done(rows, source)
        with RowProgress(total, file is not sys.stdout) as progress:
            for chunk in iter_chunks(rows, batch_size * BATCHES_PER_CHUNK, not is_stream(source), characters):
                write_chunk(chunk, model, writer, source, on_null, batch_size)
                finish_chunk(chunk, model, writer, partial)
                progress.update(progress.rows + len(chunk), report.raw_bytes)
                return_freed_memory()
        writer.begin([])
    done = f"{progress.rows:,} rows in {progress.seconds:.1f} s; batches of up to {batch_size}: {model.batch_times}"
    print(done, file=sys.stderr)
    if model.truncated:
        print(f"{model.truncated:,} texts are longer than {model.max_length} tokens: read in part", file=sys.stderr)
    return before + progress.rows


def write_chunk(
    chunk: Sequence[InputRow],
    model: TaskModel,
    writer: "TaskWriter",
    source: str,
    on_null: OnNull | None,
    batch_size: int,
) -> None:
    """Predict and write some rows. Raises DataError for a row whose second text is empty, unless on_null = empty."""
    task = model.task
    made: list[Row | None] = []
    for row in chunk:
        place = f"{source} row {row.number}"
        values = row.columns if task.columns.text in row.columns else {**row.columns, task.columns.text: row.text}
        found = None if row.text is None else task.unlabelled(values, place)
        if row.text is not None and found is None and on_null != "empty":
            raise DataError(
                f"{place}: no text in the column '{task.columns.pair}'. Name it with --text-pair COLUMN, fill it in, "
                "or set --on-null empty (such rows keep their place and get no prediction)"
            )
        made.append(found)
    predictions = iter(model.predict([row for row in made if row is not None], batch_size) if any(made) else ())
    for row, given in zip(chunk, made, strict=True):
        writer.write(row, None if given is None else task.output(given, next(predictions)))


def finish_chunk(
    chunk: list[InputRow], model: TaskModel, writer: "TaskWriter", partial: PartialOutput[LabelState] | None
) -> None:
    if partial is None:
        writer.file.flush()
    else:
        partial.commit(chunk, layout=writer.layout, truncated=model.truncated)


class TaskWriter:
    """Writes one row per input row: its number, its columns, and `names`, what the task predicts.

    In CSV, lists and objects are JSON. A row without text has empty values.
    """

    def __init__(self, file: Writable, output_format: OutputFormat, names: Sequence[str]) -> None:
        self.file, self.names = file, list(names)
        self.table = csv.writer(file, lineterminator="\n") if output_format == "csv" else None
        self.layout: Layout | None = None

    def begin(self, columns: Sequence[str]) -> None:
        """Fix the columns of the output, unless that has been done, and write the header of a CSV file."""
        if self.layout is not None:
            return
        self.layout = Layout.of(columns, ["row", *self.names])
        if self.table is not None:
            first, *others = self.layout.added.values()
            self.table.writerow([first, *columns, *others])

    def write(self, row: InputRow, values: dict[str, Any] | None) -> None:
        """Write a row; `values` by name, None for a row without text. Raises DataError for new columns in CSV."""
        self.begin(list(row.columns))
        assert self.layout is not None
        added = self.layout.added
        found = [None if values is None else values[name] for name in self.names]
        if self.table is not None:
            new = [name for name in row.columns if name not in self.layout.columns]
            if new:
                raise DataError(
                    f"row {row.number}: the key '{new[0]}' is not among the keys of the first row, which are the "
                    "columns of the CSV output. Write JSONL instead: --format jsonl"
                )
            cells = [csv_value(row.columns.get(name)) for name in self.layout.columns]
            self.table.writerow([row.number, *cells, *map(csv_value, found)])
            return
        columns = {name: json_value(value) for name, value in row.columns.items()}
        tree = {added["row"]: row.number, **columns}
        tree |= {added[name]: value for name, value in zip(self.names, found, strict=True)}
        self.file.write(json.dumps(tree, ensure_ascii=False, default=str) + "\n")


def score_task(
    directory: Path,
    source: str,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    split: str = "train",
    on_null: str = "stop",
    batch_size: int = 64,
    encoding: str | None = None,
) -> dict[str, Any]:
    """Return the scores of a model on labelled rows, with 95 % intervals. Raises CheckpointError, DataError."""
    settings = {"text": text, "text_pair": text_pair, "label": label, "on_null": on_null, "encoding": encoding}
    model = TaskModel(directory, settings)
    task = model.task
    found_source = find_scored(source, split, is_readable(task))
    notes = found_source.notes
    try:
        rows = read_rows(task, found_source, notes)
    except DataError as error:
        raise with_flags(error) from None
    task.check(rows, source, f"of {model.directory}")
    found = scores_with_intervals(task.statistics(rows, model.predict(rows, batch_size)), task.scores)
    return {
        "model": str(model.directory),
        "data": source,
        "task": task.name,
        "metrics": list(task.metrics),
        "scores": {"examples": len(rows), **found},
        "notes": notes,
    }


def print_task_scores(found: dict[str, Any], as_json: bool) -> None:
    """Print what `score_task` returned: a table, or one JSON object. Notes go to standard error."""
    for note in found["notes"]:
        print(note, file=sys.stderr)
    if as_json:
        print(json.dumps(plain(found), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{found['data']}: {found['scores']['examples']:,} rows, {found['model']}", markup=False)
    console.print(score_line(found["scores"], found["metrics"]), markup=False)
