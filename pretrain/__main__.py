"""The command line of stage 2: `python -m pretrain` trains, `python -m pretrain plan` says beforehand what it needs."""

from typing import TYPE_CHECKING, Annotated

import typer

from mini_llm.engine.cli import EXIT_CODES, TrainByDefault, add_replay, command_app, run_app

if TYPE_CHECKING:
    from .config import PretrainConfig

HELP = f"""Pretrain a decoder, an encoder or an encoder-decoder on your text, within a time budget.

Without arguments: a GPT on the standard library of the running Python, for three minutes. A tokenizer is trained \
first when there is none. The run lies in runs/gpt (runs/mlm), with -NAME for the data called NAME; the same command \
again goes on where it stopped, and changes nothing when it is finished.

Models: gpt (qwen3), mlm (modernbert), transformer, gpt2, bert, llama, qwen3, modernbert, t5; or a YAML file like \
those of configs/model/. Decoders learn next tokens, encoders masked tokens (BERT: and next sentences), \
encoder-decoders corrupted spans, or pairs of texts.

[bold]Examples[/bold]

  python -m pretrain\n
  python -m pretrain --model mlm --budget 10m\n
  python -m pretrain --data input.txt --budget 2m\n
  python -m pretrain --data 'reviews/*.jsonl.gz' --run reviews sizes.hidden_size=384 optim.lr=2e-3\n
  python -m pretrain --model t5 pairs.path=pairs.tsv pairs.source=english pairs.target=german\n
  python -m pretrain --model t5 --data reviews.jsonl.gz pairs.task=restore\n
  python -m pretrain --init models/Qwen3-0.6B --data input.txt optim.name=adamw optim.lr=1e-5\n
  python -m pretrain configs/pretrain/gpt.yaml max_steps=1000 budget=null\n
  accelerate launch --config_file configs/accelerate/zero2.yaml -m pretrain\n
  python -m pretrain plan configs/pretrain/gpt-124m.yaml --ranks 8 --zero 2

[bold]Settings[/bold]

  sizes.*: architecture (hidden_size, num_hidden_layers, ...); by rule from the budget and the machine\n
  optim.*, schedule.*: learning rates and their course; runtime.*: precision, compile, gradient_checkpointing\n
  global_batch_size, micro_batch_size, max_steps, max_epochs, evaluate_every, save_every, keep_last, checkpoint,
  seed\n
  pairs.*: path, source, target, validation, test, or task=restore (give sentences their capitals and marks back)\n
  embeddings=random: not from the corpus's bigrams, the default, or co-occurrences (pretrain/warm_start/choose.py)\n
  tokenizer=DIR, vocab_size=N, corpus.*: sources, split; tracking.*: Weights & Biases

All options of training: python -m pretrain train --help

{EXIT_CODES}"""

PLAN_HELP = f"""What a run would be and need, before any work: parameters, FLOPs, memory of each process by part and \
ZeRO stage, disk, and the time it takes at the speed of a few real steps. Refuses what does not fit.

[bold]Examples[/bold]

  python -m pretrain plan\n
  python -m pretrain plan --model mlm sizes.hidden_size=512 micro_batch_size=8\n
  python -m pretrain plan configs/pretrain/gpt-124m.yaml --ranks 8 --zero 2 --memory 80GB --tokens 10B

{EXIT_CODES}"""


app = command_app(HELP, TrainByDefault)


@app.command(help=HELP)
def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [KEY=VALUE]...", help="Settings.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="gpt, mlm, another preset, or a YAML file.")] = None,
    init: Annotated[
        str | None, typer.Option(metavar="DIR", help="Go on from this model directory or run, with its tokenizer.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="File, folder, glob or dataset org/name; may be given several times."),
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Wall time of training: 30s, 10m, 4h.")] = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run: runs/NAME.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    flags = {"model": model, "init": init, "mini_llm.corpus.sources": data or None, "budget": budget, "run": run}
    config = read_settings(arguments or [], flags)

    from .plan_command import check_fits
    from .run import pretrain

    check_fits(config)
    pretrain(config)


@app.command(help=PLAN_HELP)
def plan(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [KEY=VALUE]...", help="Settings.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="gpt, mlm, another preset, or a YAML file.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="PATH", help="As in training.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Wall time of training: 30s, 10m, 4h.")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes. [default: 1]")] = None,
    zero: Annotated[int | None, typer.Option(min=0, max=3, help="ZeRO stage. [default: runtime.zero_stage]")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of each GPU (80GB), to plan for other machines.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Of the corpus (300M, 10B). [default: by the size of its files]")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    config = read_settings(arguments or [], {"model": model, "mini_llm.corpus.sources": data or None, "budget": budget})

    from .plan_command import parse_count, show_plan

    show_plan(config, ranks, zero, parse_count(memory, "--memory"), parse_count(tokens, "--tokens"))


add_replay(app, f"{__package__}.run")


def read_settings(arguments: list[str], flags: dict[str, object]) -> "PretrainConfig":
    """PretrainConfig from YAML, flags and key=value, later ones first. Raises ConfigError."""
    from mini_llm.engine.config import flag_overrides, load_config, split_arguments

    from .config import PretrainConfig

    path, overrides = split_arguments(arguments)
    return load_config(PretrainConfig, path, [*flag_overrides(flags), *overrides])


if __name__ == "__main__":
    run_app(app, "pretrain")
