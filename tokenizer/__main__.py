"""The command line of stage 1: `python -m tokenizer [CONFIG.yaml] [key=value ...]`."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mini_llm.engine.cli import (
    EXIT_CODES,
    Debug,
    Version,
    command_app,
    program,
    run_app,
    settings_argument,
    settings_command,
)

if TYPE_CHECKING:
    from mini_llm.tokenization.config import TokenizerConfig
    from mini_llm.tokenization.tokenizer import Tokenizer

ME = program("tokenizer")
HELP = f"""Train a SentencePiece tokenizer on your text, verify it, and report its quality.

Without arguments the text is the standard library of the running Python. The result is written to runs/tokenizer, or \
to runs/tokenizer-NAME for a corpus called NAME. The same command again changes nothing and shows the report.

[bold]Examples[/bold]

  {ME}
  {ME} --data input.txt
  {ME} --data 'reviews/*.jsonl.gz' vocab_size=8192
  {ME} --data org/name corpus.sources.0.text=content
  {ME} configs/tokenizer.yaml seed=1

{EXIT_CODES}"""


def config_class() -> Any:
    from mini_llm.tokenization.config import TokenizerConfig

    return TokenizerConfig


app = command_app(HELP)


@app.command(help=HELP, cls=settings_command(config_class))
def main(
    arguments: Annotated[list[str] | None, settings_argument(config_class)] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="File, folder, glob or dataset org/name; repeat for several."),
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run: runs/NAME.")] = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    config = read_settings(arguments or [], data or [], run)

    from mini_llm.engine.tracking.wandb_runs import run_of_its_own

    config = run_of_its_own(config, config.directory.name, named=config.run is not None)
    if os.environ.get("RANK", "0") != "0":
        return  # started by a launcher on several processes: the first one does the work

    from .train import train_tokenizer

    show(config, train_tokenizer(config), data or [])


def read_settings(arguments: list[str], data: list[str], run: str | None) -> "TokenizerConfig":
    """TokenizerConfig from the YAML file, the flags, then key=value. Raises ConfigError."""
    from mini_llm.engine.config import flag_overrides, load_config, split_arguments

    path, overrides = split_arguments(arguments)
    flags = flag_overrides({"corpus.sources": data or None, "run": run})
    return load_config(config_class(), path, [*flags, *overrides])


def show(config: "TokenizerConfig", tokenizer: "Tokenizer", data: list[str]) -> None:
    """Print the report of a finished run from its files, and the next command."""
    import shlex

    from rich.console import Console

    from mini_llm.engine.report.record import Run
    from mini_llm.engine.run.state import read_state

    from .report import Figures, draw, report_table

    directory, console = tokenizer.directory, Console(highlight=False)
    if (figures := read_state(directory / "summary.json", Figures)) is not None:
        console.print(report_table(figures.model_dump()))
        console.print()
    if (pieces := Run(directory).table("pieces")) is not None:
        draw(pieces["rows"], console)
        console.print()
    console.print(f"The tokenizer is in {directory}.", markup=False, soft_wrap=True)
    words = [word for path in data for word in ("--data", path)] + ([f"tokenizer={directory}"] if config.run else [])
    console.print(f"Next: {program('pretrain')} {shlex.join(words)}".rstrip(), markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_app(app, "tokenizer")
