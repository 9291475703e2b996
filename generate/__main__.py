"""The command line of stage 4: `python -m generate MODEL_DIR "prompt"`. Arguments are checked before torch loads."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

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
from mini_llm.engine.config import build_config, load_config
from mini_llm.engine.errors import ConfigError, DataError

from .config import GenerateConfig

ME = program("generate")
DEFAULT = GenerateConfig()
HELP = f"""Continue a text with a causal language model.

MODEL_DIR is a Hugging Face model directory or a run directory. \
The prompt is the second argument; if it is missing or '-', it is read from standard input (without a final newline). \
Text is streamed to standard output, everything else goes to standard error.

[bold]Examples[/bold]

  {ME} runs/gpt "def read_lines(path):"
  {ME} runs/gpt "import " --temperature 0 --max-new-tokens 50
  {ME} runs/gpt "class " --num-samples 3 --seed 7 --json
  {ME} runs/gpt "def f(x):" --stop "def " --stop $'\\n\\n'
  git log -1 --format=%B | {ME} runs/gpt
  {ME} runs/gpt --file prompts.txt --dtype int8 > texts.jsonl
  {ME} runs/gpt --interactive
  {ME} inspect runs/gpt "def f(x):"   [dim]# a page[/dim]

A prompt longer than the model's context is cut at its start: the last (context - max-new-tokens) tokens are kept, \
or half a context if that is more. When the context is full, generation continues from its last half. \
A note on standard error reports both. \
Unknown, beginning, padding, mask, class and separator tokens are never generated.

{EXIT_CODES}"""

INSPECT_HELP = f"""Show how a model processes a text: one HTML page to open in a browser.

The attention of every head and layer. For a language model also the prediction after each layer (logit lens), for a \
classifier the tokens that decided the label. Works for every model that this project reads.

[bold]Examples[/bold]

  {ME} inspect runs/gpt "def read_lines(path):"
  {ME} inspect runs/mlm "for line in <mask>:" --out mlm.html
  {ME} inspect runs/gpt-classifier "import json" --max-tokens 64
  {ME} inspect runs/t5 "good morning" --target "guten Morgen"

The text is the second argument; if it is missing or '-', it is read from standard input. \
The page's address holds the selection, counted from 1: inspect.html#layer=2&head=3&token=4. \
For a model directory named inspect, write ./inspect: {ME} ./inspect "def".

{EXIT_CODES}"""

app = command_app(HELP)
inspect_app = command_app(INSPECT_HELP)


def flag(text: str) -> Any:
    return typer.Option(help=text)


def config_class() -> Any:
    return GenerateConfig


@app.command(help=HELP, cls=settings_command(config_class))
def generate(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Model or run directory.")],
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Text to continue.")] = None,
    overrides: Annotated[list[str] | None, settings_argument(config_class, "[KEY=VALUE]...")] = None,
    temperature: Annotated[float, flag("0: always the most likely token; higher: more varied.")] = DEFAULT.temperature,
    top_k: Annotated[int, flag("Sample from the K most likely tokens; 0: all.")] = DEFAULT.top_k,
    top_p: Annotated[float, flag("Sample from the most likely tokens that make up this probability.")] = DEFAULT.top_p,
    min_p: Annotated[float, flag("Drop tokens below this share of the highest probability.")] = DEFAULT.min_p,
    repetition_penalty: Annotated[
        float, flag("Above 1: tokens already in the prompt or text become less likely.")
    ] = DEFAULT.repetition_penalty,
    seed: Annotated[int, flag("The same seed gives the same text.")] = DEFAULT.seed,
    num_samples: Annotated[int, flag("Samples per prompt; sample i depends on (seed, i) only.")] = DEFAULT.num_samples,
    max_new_tokens: Annotated[int, flag("Most tokens to generate per sample.")] = DEFAULT.max_new_tokens,
    stop: Annotated[list[str] | None, flag("Stop before this string; repeat for several.")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before the text.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per sample, without streaming.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Continue each line of FILE, in batches; prints JSON lines.")
    ] = None,
    interactive: Annotated[bool, typer.Option("--interactive", help="Ask for prompts until Ctrl-D.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Store the samples in the run, for its report and W&B.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Always print the speed on standard error.")] = False,
    device: Annotated[str, flag("auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, flag("auto, fp32, bf16, fp16; int8: weights of 1 byte, on a CPU.")] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="On a CPU: compile the decoding step (once, 1 s).")
    ] = True,
    debug: Debug = False,
    version: Version = False,
) -> None:
    flags = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "num_samples": num_samples,
        "max_new_tokens": max_new_tokens,
        "stop": [valid_text(text) for text in stop or []],
    }
    if (file or interactive) and prompt and "=" in prompt and prompt.partition("=")[0] in flags:
        # --file and --interactive take no prompt, so this argument is a setting.
        overrides, prompt = [prompt, *(overrides or [])], None
    config = read_settings(flags, overrides or [])
    if prompt == "-" and interactive:
        raise ConfigError("--interactive reads its prompts from standard input; leave '-' out")
    prompts = None if file is None else read_prompts(file)
    if prompts and (interactive or prompt is not None):
        raise ConfigError(f"--file {file} holds the prompts; leave {'--interactive' if interactive else 'PROMPT'} out")
    if prompts is None and not interactive and prompt in (None, "-"):
        prompt = read_stdin()
    elif prompt is not None:
        prompt = valid_text(prompt)
    if sys.stdout is None:
        raise ConfigError("standard output is closed: there is nowhere to write the text")

    from .load import load_generator
    from .output import Printer, interact

    printer = Printer(
        load_generator(model_dir, config, device, dtype, compiled), as_json=as_json, echo=echo, verbose=verbose
    )
    if prompts:
        printer.answer_all(prompts)
    elif prompt is not None:
        printer.answer(prompt)
    if record:
        from .record import record_samples

        record_samples(model_dir, config, printer.samples)
    if interactive:
        interact(printer)


@inspect_app.command(help=INSPECT_HELP)
def inspect(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Model or run directory.")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Text to read.")] = None,
    out: Annotated[Path, flag("The page to write.")] = Path("inspect.html"),
    target: Annotated[
        str | None, flag("Encoder-decoder: the decoder's text; without it, the model's own answer.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=4, help="Tokens of a text to look at, from its beginning.")] = 256,
    debug: Debug = False,
) -> None:
    text = read_stdin() if text in (None, "-") else valid_text(text)
    if not text:
        raise ConfigError("the text is empty: give the model something to read")
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a directory" if out.is_dir() else "its directory does not exist"
        raise ConfigError(f"--out {out}: {problem}; name a file such as inspect.html")

    from .inspection.collect import write_inspection

    inspection = write_inspection(model_dir, text, out, None if target is None else valid_text(target), max_tokens)
    for note in inspection.notes:
        print(f"generate inspect: {note}", file=sys.stderr)
    print(f"{out}: {out.stat().st_size / 1e3:,.0f} kB", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """`inspect` is a command when it comes first; anything else generates, from a directory called ./inspect too."""
    if arguments[:1] == ["inspect"]:
        run_app(inspect_app, "generate inspect", arguments[1:])
    else:
        run_app(app, "generate", arguments)


def read_settings(flags: dict, overrides: list[str]) -> GenerateConfig:
    """GenerateConfig from flags, then `key=value` arguments. Raises ConfigError naming the flag or key."""
    for text in overrides:
        if "=" not in text:
            raise ConfigError(
                f"'{text}': only key=value may follow the prompt; put quotes around a prompt of several words"
            )
    given = load_config(GenerateConfig, overrides=overrides).model_dump(exclude_unset=True)
    return build_config(GenerateConfig, {**flags, **given}, "the command line")


def valid_text(argument: str) -> str:
    """An argument whose bytes are UTF-8, whatever the locale. Raises ConfigError."""
    try:
        argument.encode()
        return argument
    except UnicodeEncodeError:
        # Bytes that the locale has no characters for arrive as lone surrogates.
        with contextlib.suppress(UnicodeDecodeError):
            return os.fsencode(argument).decode("utf-8")
    raise ConfigError(f"{argument!r}: this argument is not valid UTF-8")


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises DataError."""
    try:
        lines = [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8").split("\n")]
    except OSError as error:
        raise DataError(f"--file {path}: {error.strerror}; name a text file with one prompt a line") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"--file {path}: not UTF-8 at byte {error.start}. Convert it: iconv -f LATIN1 -t UTF-8"
        ) from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise DataError(f"--file {path}: no prompt in it; write one a line")
    return prompts


def read_stdin() -> str:
    """All of standard input without one final newline; empty where it is closed or a terminal. Raises DataError."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    content = sys.stdin.buffer.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input: not UTF-8 at byte {error.start} (0x{content[error.start]:02x}). "
            "Convert it: iconv -f LATIN1 -t UTF-8"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


if __name__ == "__main__":
    main(sys.argv[1:])
