"""The command line: `python -m tokenizer [CONFIG.yaml] [key=value ...]`."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from mini_llm.engine.cli import EXIT_CODES, command_app, run_app

if TYPE_CHECKING:
    from mini_llm.tokenization.config import TokenizerConfig

HELP = f"""Train a SentencePiece tokenizer on your text, check it, and report what it is worth.

Without arguments the text is the standard library of the running Python. The result lies in runs/tokenizer, or in \
runs/tokenizer-NAME for the data called NAME; the same command again changes nothing and shows the report.

[bold]Examples[/bold]

  python -m tokenizer\n
  python -m tokenizer --data input.txt\n
  python -m tokenizer --data 'reviews/*.jsonl.gz' --run reviews vocab_size=8192\n
  python -m tokenizer --data org/name corpus.sources.0.text=content\n
  python -m tokenizer my-tokenizer.yaml seed=1

[bold]Settings[/bold]

  vocab_size=N: pieces; by default the power of two nearest to the square root of the bytes of text, 512 to 32768\n
  hidden_size=N: width of the model this is for; bounds that default to N * N / 16\n
  sentinels=N: symbols <extra_id_0>, ... that mark corrupted spans, for an encoder-decoder (pretrain asks for 100)\n
  sample_bytes=N: text to train from, at most (20 MB)\n
  character_coverage=X: share of the characters that get a piece of their own (0.9995); others become bytes\n
  corpus.*: sources, split, deduplication (mini_llm/corpus/config.py); tracking.*: Weights & Biases

{EXIT_CODES}"""

app = command_app(HELP)


@app.command(help=HELP)
def main(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [KEY=VALUE]...", help="Settings.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="File, folder, glob or dataset org/name; may be given several times."),
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run: runs/NAME.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    config = read_settings(arguments or [], data or [], run)
    if os.environ.get("RANK", "0") != "0":
        return  # started by a launcher on several processes: the first one does it

    from .train import train_tokenizer

    train_tokenizer(config, config.directory)
    show(config, data or [])


def read_settings(arguments: list[str], data: list[str], run: str | None) -> "TokenizerConfig":
    """TokenizerConfig from the arguments. Raises ConfigError."""
    from mini_llm.engine.config import flag_overrides, load_config, split_arguments
    from mini_llm.tokenization.config import TokenizerConfig

    path, overrides = split_arguments(arguments)
    flags = flag_overrides({"mini_llm.corpus.sources": data or None, "run": run})
    return load_config(TokenizerConfig, path, [*flags, *overrides])


def show(config: "TokenizerConfig", data: list[str]) -> None:
    """Print the report of a finished run from its files, and what to do next."""
    import shlex

    from rich.console import Console

    from mini_llm.engine.run.files import read_json

    from .report import draw, report_table

    directory, console = config.directory, Console(highlight=False)
    console.print(report_table(read_json(directory / "summary.json")))
    console.print()
    draw(read_json(directory / "tables" / "pieces.json")["rows"], console)
    console.print()
    console.print(f"The tokenizer lies in {directory}.", markup=False, soft_wrap=True)
    words = [word for path in data for word in ("--data", path)] + ([f"tokenizer={directory}"] if config.run else [])
    console.print(f"Next: {shlex.join(['python', '-m', 'pretrain', *words])}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_app(app, "tokenizer")
