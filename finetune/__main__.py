"""The command line of stage 3: `python -m finetune` trains a classifier, `python -m finetune predict` uses one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

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

ME = program("finetune")
TRAIN_HELP = f"""Fine-tune a pretrained model into a text classifier, scored beside its baselines.

Without --data: the built-in task, which standard-library package does this function come from? \
The run is written to runs/MODEL-classifier, with -NAME for data called NAME. The same command again resumes it.

[bold]Examples[/bold]

  {ME}
  {ME} --model runs/mlm --run mlm-classifier
  {ME} --data reviews.csv data.text=review data.label=stars
  {ME} --init models/bert-base-uncased --data reviews.csv
  {ME} configs/finetune/gpt.yaml data.test=test.tsv
  {ME} predict runs/gpt-classifier new.csv > out.jsonl

{EXIT_CODES}"""

PREDICT_HELP = f"""Label new texts with a classifier: one row per text, in order, with the probability of every label.

FILE is plain text (one text per line), .jsonl, .csv, .tsv or .parquet, or - for standard input, which may be endless.

[bold]Examples[/bold]

  {ME} predict runs/gpt-classifier new.csv --text review --output labelled.csv
  tail -f service.log | {ME} predict runs/gpt-classifier - --top-k 1
  {ME} predict runs/gpt-classifier - --input-format jsonl < new.jsonl

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

    from .run import finetune

    finetune(config)


def read_settings(arguments: list[str], flags: Mapping[str, object]) -> Any:
    """FinetuneConfig from the YAML file, the flags, then key=value. Raises ConfigError."""
    from mini_llm.engine.config import flag_overrides, load_config, split_arguments

    path, overrides = split_arguments(arguments)
    return load_config(config_class(), path, [*flag_overrides(flags), *overrides])


@app.command(help=PREDICT_HELP, short_help="Label new texts with a trained classifier.")
def predict(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Classifier: a run or model directory.")],
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="Texts to label.")],
    text: Annotated[str, typer.Option(help="Column that holds the text; tables only.")] = "text",
    input_format: Annotated[str | None, typer.Option(help="Format of standard input: lines, jsonl, csv, tsv.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write. [default: standard output]")] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="jsonl or csv. [default: by --output]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    top_k: Annotated[int | None, typer.Option(min=1, help="Print only the K most likely labels.")] = None,
    debug: Debug = False,
) -> None:
    for value, allowed, flag in (
        (input_format, ("lines", "jsonl", "csv", "tsv"), "--input-format"),
        (output_format, ("jsonl", "csv"), "--format"),
    ):
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{value}: choose {', '.join(allowed)}", param_hint=flag)

    from .predict import InputFormat, OutputFormat
    from .predict import predict as label

    read_as, write_as = cast(InputFormat | None, input_format), cast(OutputFormat | None, output_format)
    label(model_dir, source, text, read_as, output, write_as, batch_size, top_k)


if __name__ == "__main__":
    run_app(app, "finetune")
