"""The command line of stage 3: `python -m finetune` trains a classifier, `python -m finetune predict` uses one."""

from pathlib import Path
from typing import Annotated

import typer

from mini_llm.engine.cli import EXIT_CODES, TrainByDefault, add_replay, command_app, run_app
from mini_llm.engine.config import flag_overrides, split_arguments

TRAIN_HELP = f"""Fine-tune a pretrained model into a text classifier, scored beside its baselines.

[bold]Examples[/bold]

  python -m finetune\n
  python -m finetune --model runs/mlm --run mlm-classifier\n
  python -m finetune --model runs/gpt --data reviews.csv data.text=review data.label=stars\n
  python -m finetune --init models/bert-base-uncased --data reviews.csv\n
  python -m finetune configs/finetune/gpt.yaml data.test=test.tsv\n
  python -m finetune predict runs/gpt-classifier new.csv --text review > labelled.jsonl

Without --data the task is built in: which standard-library package does this function come from? \
All options of training: python -m finetune train --help

{EXIT_CODES}"""

PREDICT_HELP = f"""Label new texts with a classifier: one row each, in order, with the probability of every label.

FILE is plain text (a line is a text), .jsonl, .csv, .tsv or .parquet, or - for standard input, which may be endless.

[bold]Examples[/bold]

  python -m finetune predict runs/gpt-classifier new.csv --text review --output labelled.csv\n
  tail -f service.log | python -m finetune predict runs/gpt-classifier - --top-k 1\n
  python -m finetune predict runs/gpt-classifier - --input-format jsonl < new.jsonl

{EXIT_CODES}"""


app = command_app(TRAIN_HELP, TrainByDefault)


@app.command(help=TRAIN_HELP)
def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [KEY=VALUE]...", help="Configuration and overrides.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--init",
            help="Run, or Hugging Face directory (gpt2, bert, llama, qwen3, modernbert, t5): model=",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Labelled file, glob or dataset name: data.path=")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run: run=")] = None,
    budget: Annotated[str | None, typer.Option(help="Training time, such as 3m: budget=")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    path, overrides = split_arguments(arguments or [])
    named = flag_overrides({"model": model, "data.path": data, "run": run, "budget": budget})

    from .run import main

    main(path, [*named, *overrides])


@app.command(help=PREDICT_HELP)
def predict(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Classifier: a run or model directory.")],
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="Texts to label.")],
    text: Annotated[str, typer.Option(help="Column that holds the text; tables only.")] = "text",
    input_format: Annotated[str | None, typer.Option(help="Of standard input: lines, jsonl, csv, tsv.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write. [default: standard output]")] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="jsonl or csv. [default: by --output]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    top_k: Annotated[int | None, typer.Option(min=1, help="Probabilities of the K best labels only.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    for value, allowed, flag in (
        (input_format, ("lines", "jsonl", "csv", "tsv"), "--input-format"),
        (output_format, ("jsonl", "csv"), "--format"),
    ):
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{value}: choose {', '.join(allowed)}", param_hint=flag)

    from .predict import predict as label

    label(model_dir, source, text, input_format, output, output_format, batch_size, top_k)


add_replay(app, f"{__package__}.run")

if __name__ == "__main__":
    run_app(app, "finetune")
