"""The command line of stage 3: `python -m finetune` trains a classifier, `python -m finetune predict` uses one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mini_llm.engine.cli import (
    EXIT_CODES,
    Debug,
    TrainByDefault,
    Version,
    command_app,
    program,
    run_app,
    settings_argument,
    settings_command,
)

from .attributions.commands import register as register_errors
from .crossvalidation.commands import register as register_cross_validate
from .smaller.commands import register as register_smaller
from .sweeping.commands import register as register_sweep

ME = program("finetune")
TRAIN_HELP = f"""Fine-tune a pretrained model into a text classifier, or for another task (task=), beside its baselines.

Without --data: the built-in task, which standard-library package does this function come from? \
The run is written to runs/MODEL-classifier, with -NAME for data called NAME. The same command again resumes it.

[bold]Examples[/bold]

  {ME}
  {ME} --model runs/mlm --run mlm-classifier
  {ME} --data reviews.csv data.text=review data.label=stars
  {ME} --init models/bert-base-uncased --data reviews.csv
  {ME} configs/finetune/gpt.yaml data.path=train.tsv data.test=test.tsv
  {ME} predict runs/gpt-classifier new.csv > out.jsonl

{EXIT_CODES}"""

PREDICT_HELP = f"""Label new texts with a classifier: one row per row of FILE, in order, with all its columns.

FILE is plain text (one text per line), .jsonl, .json, .csv, .tsv or .parquet, also compressed, or - for standard \
input, which may be endless. \
Added columns: row (its number), label, probability, and the probability of every label; an added column is called \
predicted_NAME if the input has NAME already. Probabilities are calibrated if the model holds a calibration.

With --output, the same command continues after a kill: rows go to OUTPUT.partial until all are there.

[bold]Examples[/bold]

  {ME} predict runs/gpt-classifier new.csv --text review --output labelled.csv
  {ME} predict runs/gpt-classifier new.csv --precision 0.95
  tail -f service.log | {ME} predict runs/gpt-classifier - --top-k 1
  {ME} predict runs/gpt-classifier - --input-format jsonl < new.jsonl

{EXIT_CODES}"""

SCORE_HELP = f"""Score a classifier on labelled rows: accuracy, macro F1, MCC, log loss and calibration, with intervals.

A model of another task gets the scores of that task.

[bold]Examples[/bold]

  {ME} score runs/gpt-classifier test.csv --text review --label stars
  {ME} score runs/gpt-classifier test.jsonl --json > scores.json

{EXIT_CODES}"""

COMPARE_HELP = f"""Compare classifiers on the same labelled rows: A beside each of the others.

Prints the differences of accuracy and macro F1 with 95 % intervals of the paired bootstrap, the rows that only one of \
them classifies correctly, and McNemar's exact test; then mean and deviation of runs that differ by their seed only.
Judged is what `predict` gives, pooled with the linear models beside a model; with --alone the model itself.

[bold]Examples[/bold]

  {ME} compare runs/bert-classifier runs/gpt-classifier
  {ME} compare runs/bert-classifier models/other --data test.csv --text review

{EXIT_CODES}"""


def config_class() -> Any:
    from .config import FinetuneConfig

    return FinetuneConfig


def _models(incomplete: str) -> list[str]:
    """Runs that hold a model; the shell completes other paths."""
    return [str(path.parent) for path in Path("runs").glob("*/model") if str(path.parent).startswith(incomplete)]


app = command_app(TRAIN_HELP, TrainByDefault)


@app.command(help=TRAIN_HELP, cls=settings_command(config_class))
def train(
    arguments: Annotated[list[str] | None, settings_argument(config_class)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--init",
            metavar="DIR",
            help="Run, or Hugging Face directory (gpt2, bert, llama, qwen3, modernbert, t5): model=",
            autocompletion=_models,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Labelled file, glob or dataset org/name: data.path=")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run, runs/NAME: run=")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Wall time of training (30s, 10m, 4h): budget=")
    ] = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    flags = {"model": model, "data.path": data, "run": run, "budget": budget}
    config = read_settings(arguments or [], flags)

    from mini_llm.engine.run.inputs import named_by_data
    from mini_llm.engine.tracking.wandb_runs import run_of_its_own

    named = config.run is not None
    config = named_by_data(config, Path("runs"))
    config = run_of_its_own(config, config.run_name, named=named)

    from .run import finetune

    finetune(config)


def read_settings(arguments: list[str], flags: Mapping[str, object]) -> Any:
    """FinetuneConfig from the YAML file, the flags, then key=value. Raises ConfigError."""
    from mini_llm.engine.config import flag_overrides, load_config, split_arguments

    path, overrides = split_arguments(arguments)
    return load_config(config_class(), path, [*flag_overrides(flags), *overrides])


ModelDirectory = Annotated[
    Path, typer.Argument(metavar="MODEL_DIR", help="Classifier: a run or model directory.", autocompletion=_models)
]

Encoding = Annotated[
    str | None,
    typer.Option(help="Encoding of the input, such as cp1252.", show_default="UTF-8, or by the byte order mark"),
]


@app.command(help=PREDICT_HELP, short_help="Label new texts with a trained classifier.")
def predict(
    model_dir: ModelDirectory,
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="Texts to label.")],
    text: Annotated[
        str, typer.Option(help="Column that holds the text; tables only. With a task= the default is that of training.")
    ] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column of the second text, or of the question.")] = None,
    input_format: Annotated[str | None, typer.Option(help="Format of standard input: lines, jsonl, csv, tsv.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
    output_format: Annotated[
        str | None, typer.Option("--format", help="jsonl or csv.", show_default="by --output")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    top_k: Annotated[int | None, typer.Option(min=1, help="Print only the K most likely labels.")] = None,
    min_probability: Annotated[
        float | None, typer.Option(min=0, max=1, help="No label for rows whose best probability is lower.")
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="The same with the threshold that reached this precision on validation."),
    ] = None,
    on_null: Annotated[
        str | None,
        typer.Option(
            help="Rows without a text: stop with an error, empty (keep the row, without a label) or skip.",
            show_default="stop; empty for lines",
        ),
    ] = None,
    encoding: Encoding = None,
    alone: Annotated[bool, typer.Option("--alone", help="Use the model without the linear models beside it.")] = False,
    debug: Debug = False,
) -> None:
    check_choice(input_format, ("lines", "jsonl", "csv", "tsv"), "--input-format")
    check_choice(output_format, ("jsonl", "csv"), "--format")
    check_choice(on_null, ("stop", "empty", "skip"), "--on-null")

    from .tasks.registry import SINGLE_LABEL, model_task

    if model_task(model_dir) != SINGLE_LABEL:
        given = {"--top-k": top_k, "--min-probability": min_probability, "--precision": precision}
        refuse(model_task(model_dir), [flag for flag, value in given.items() if value is not None])

        from .tasks.commands import predict_task

        columns: dict[str, Any] = {"text": None if text == "text" else text, "text_pair": text_pair}
        columns |= {"input_format": input_format, "output_format": output_format, "on_null": on_null}
        predict_task(model_dir, source, output=output, batch_size=batch_size, encoding=encoding, **columns)
        return
    refuse(SINGLE_LABEL, ["--text-pair"] if text_pair else [])

    from .predict import predict as label

    options: dict[str, Any] = {"input_format": input_format, "output_format": output_format, "on_null": on_null}
    options |= {"batch_size": batch_size, "top_k": top_k, "min_probability": min_probability, "precision": precision}
    label(model_dir, source, text, output=output, encoding=encoding, alone=alone, **options)


@app.command(help=SCORE_HELP, short_help="Score a trained classifier on labelled rows.")
def score(
    model_dir: ModelDirectory,
    source: Annotated[str, typer.Argument(metavar="FILE", help="Labelled rows: file, folder, glob or dataset.")],
    text: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column of the second text, or of the question.")] = None,
    label: Annotated[str, typer.Option(help="Column that holds the label.")] = "label",
    split: Annotated[str, typer.Option(help="Split of a dataset.")] = "train",
    on_null: Annotated[str, typer.Option(help="Rows without text or label: stop with an error, or skip.")] = "stop",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 64,
    encoding: Encoding = None,
    alone: Annotated[bool, typer.Option("--alone", help="Use the model without the linear models beside it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    check_choice(on_null, ("stop", "skip"), "--on-null")

    from .tasks.registry import SINGLE_LABEL, model_task

    if model_task(model_dir) != SINGLE_LABEL:
        from .tasks.commands import print_task_scores, score_task

        columns = None if text == "text" else text, text_pair, None if label == "label" else label
        print_task_scores(score_task(model_dir, source, *columns, split, on_null, batch_size, encoding), as_json)
        return
    refuse(SINGLE_LABEL, ["--text-pair"] if text_pair else [])

    from .predicting.score import print_scores
    from .predicting.score import score as compute

    skip_or_stop: Any = on_null
    print_scores(compute(model_dir, source, text, label, split, skip_or_stop, batch_size, encoding, alone), as_json)


@app.command(help=COMPARE_HELP, short_help="Compare classifiers on the same rows: is the difference chance?")
def compare(
    classifiers: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B ...", help="Finished runs, or with --data model directories.", autocompletion=_models
        ),
    ],
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Labelled rows.", show_default="the runs' test rows")
    ] = None,
    text: Annotated[str, typer.Option(help="Column of --data that holds the text.")] = "text",
    label: Annotated[str, typer.Option(help="Column of --data that holds the label.")] = "label",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 64,
    encoding: Encoding = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Compare the models without the linear models beside them.")
    ] = False,
    on_null: Annotated[str, typer.Option(help="Rows of --data without text or label: stop, or skip.")] = "stop",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    check_choice(on_null, ("stop", "skip"), "--on-null")

    from .scores.compare_runs import compare_classifiers, print_comparisons

    found = compare_classifiers(classifiers, data, text, label, batch_size, encoding, alone, on_null)
    print_comparisons(*found, as_json)


def refuse(task: str, flags: list[str]) -> None:
    """Raise BadParameter for flags that do not apply to models of a task."""
    if flags:
        raise typer.BadParameter(f"does not apply to a model of task={task}", param_hint=flags[0])


def check_choice(value: str | None, allowed: tuple[str, ...], flag: str) -> None:
    if value is not None and value not in allowed:
        raise typer.BadParameter(f"{value}: choose {', '.join(allowed)}", param_hint=flag)


for register in (register_smaller, register_sweep, register_cross_validate, register_errors):
    register(app)

if __name__ == "__main__":
    run_app(app, "finetune")
