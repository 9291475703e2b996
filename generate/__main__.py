"""The command line of stage 4: `python -m generate MODEL_DIR "prompt"`. Arguments are checked before torch loads."""

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
    text_command,
)
from mini_llm.engine.config import build_config, load_config
from mini_llm.engine.errors import ConfigError

from .config import GenerateConfig
from .prompts import FORMATS, STDIN, check_output, read_prompts, read_stdin, unescape, valid_text

ME = program("generate")
DEFAULT = GenerateConfig()
HELP = f"""Continue a text with a language model.

MODEL_DIR is a Hugging Face model directory or a run directory. \
The prompt is the second argument; if it is missing or '-', it is read from standard input (without a final newline). \
A prompt that begins with '-' may also be given as --prompt='-x'. \
Text is streamed to standard output, everything else goes to standard error.

[bold]Examples[/bold]

  {ME} runs/gpt "def read_lines(path):"
  {ME} runs/gpt "import " --temperature 0 --max-new-tokens 50
  {ME} runs/gpt "class " --num-samples 3 --seed 7 --json
  {ME} runs/gpt "def f(x):" --stop "def " --stop '\\n\\n'
  git log -1 --format=%B | {ME} runs/gpt
  {ME} runs/gpt --file prompts.txt --output texts.jsonl   [dim]# continues after a kill[/dim]
  {ME} runs/gpt --file prompts.jsonl   [dim]# rows with the key "prompt"[/dim]
  {ME} runs/gpt --interactive
  {ME} runs/gpt "x = " --regex "[0-9]+"   [dim]# or --json-schema FILE[/dim]
  {ME} runs/gpt "import" --choices " os, sys"   [dim]# with probabilities[/dim]
  {ME} runs/gpt "def " --num-beams 4 --num-samples 2 --json
  {ME} runs/gpt "def " --temperature 0 --lookup 4   [dim]# faster where a text repeats itself[/dim]
  {ME} runs/mlm --fill "for i in <mask>(10):"
  {ME} inspect runs/gpt "def f(x):"   [dim]# a page[/dim]

A prompt longer than the model's context is cut at its start: the last (context - max-new-tokens) tokens are kept, \
or half a context if that is more. When the context is full, generation continues from its last half. \
A note on standard error reports both. \
With a tokenizer trained here, unknown, beginning, padding, mask, class and separator tokens are never generated.

{EXIT_CODES}"""

INSPECT_HELP = f"""Show how a model processes a text: one HTML page to open in a browser.

The attention of every head and layer. For a language model also the prediction after each layer (logit lens), for a \
classifier the tokens that decided the label. In a text for an encoder, <mask> hides a word, and the page begins with \
what the model predicts there. Works for every model that this project reads.

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
    typical_p: Annotated[float, flag("Sample from the most typical tokens that make up this probability.")] = (
        DEFAULT.typical_p
    ),
    presence_penalty: Annotated[float, flag("Above 0: tokens already generated become less likely.")] = (
        DEFAULT.presence_penalty
    ),
    frequency_penalty: Annotated[float, flag("The same, for each time that they were generated.")] = (
        DEFAULT.frequency_penalty
    ),
    no_repeat_ngram_size: Annotated[
        int, flag("Never repeat N consecutive tokens; 0: off.")
    ] = DEFAULT.no_repeat_ngram_size,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT=NUMBER", help="Add a number to the logit of a text; -100 forbids it. Repeatable."),
    ] = None,
    regex: Annotated[str | None, flag("Generate only text that matches this regular expression.")] = None,
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE|JSON", help="Generate only JSON that follows this JSON Schema.")
    ] = None,
    num_beams: Annotated[int, flag("Above 1: beam search of this width; --num-samples prints the best N.")] = (
        DEFAULT.num_beams
    ),
    length_penalty: Annotated[float, flag("Beam search: above 0 favors longer texts.")] = DEFAULT.length_penalty,
    choices: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Print these continuations, most likely first.")
    ] = None,
    fill: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Encoders: print the best tokens for each <mask> of this text.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Tokens to print for each <mask>.")] = 5,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="With --json: add the log-probability of each token.")
    ] = False,
    seed: Annotated[int, flag("The same seed gives the same text.")] = DEFAULT.seed,
    num_samples: Annotated[int, flag("Samples per prompt; sample i depends on (seed, i) only.")] = DEFAULT.num_samples,
    min_new_tokens: Annotated[int, flag("Do not end a text before this number of tokens.")] = DEFAULT.min_new_tokens,
    max_new_tokens: Annotated[int, flag("Most tokens to generate per sample.")] = DEFAULT.max_new_tokens,
    lookup: Annotated[
        int, flag("Guess up to N tokens from earlier text and check them in one pass, with the same text; 0: off.")
    ] = DEFAULT.lookup,
    stop: Annotated[
        list[str] | None, flag("Stop before this string; repeat for several. \\n also stands for a line break.")
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before the text.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per sample, without streaming.")
    ] = False,
    text: Annotated[
        str | None, typer.Option("--prompt", metavar="PROMPT", help="The prompt, in place of the argument.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="Continue each line of a text, or each row of a table with the column prompt (.jsonl, .csv, ...), in "
            "batches; prints JSON lines with the number of the row.",
        ),
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help=f"Format of --file -: {', '.join(FORMATS)}.", show_default="lines"),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of --file and standard input.", show_default="UTF-8, or by the BOM")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the lines of --file here; after a kill the same command continues."),
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
        "typical_p": typical_p,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "logit_bias": read_bias(logit_bias or []),
        "regex": None if regex is None else valid_text(regex),
        "json_schema": None if json_schema is None else valid_text(json_schema),
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "logprobs": logprobs,
        "seed": seed,
        "num_samples": num_samples,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "lookup": lookup,
        "stop": [valid_text(text) for text in stop or []],
    }
    if (file or interactive or text is not None) and prompt and prompt.partition("=")[0] in flags and "=" in prompt:
        # The prompts come from elsewhere, so this argument is a setting.
        overrides, prompt = [prompt, *(overrides or [])], None
    config = read_settings(flags, overrides or [])
    if fill is not None:
        if prompt is not None or text is not None or file is not None or interactive or choices is not None:
            raise ConfigError("--fill is the text itself; leave PROMPT, --file, --interactive and --choices out")
        from .modes import print_candidates

        print_candidates(model_dir, valid_text(fill), candidates, as_json, device, dtype)
        return
    if choices is not None and (interactive or output is not None or record):
        raise ConfigError("--choices writes no text; leave --interactive, --output and --record out")
    if prompt == STDIN and interactive:
        raise ConfigError("--interactive reads its prompts from standard input; leave '-' out")
    if prompt is not None and text is not None:
        raise ConfigError("the prompt is given twice, as an argument and with --prompt; leave one out")
    if file is not None and (interactive or prompt is not None or text is not None):
        raise ConfigError(f"--file {file} holds the prompts; leave {'--interactive' if interactive else 'PROMPT'} out")
    if input_format is not None and (input_format not in FORMATS or file is None):
        raise ConfigError(f"--input-format {input_format}: choose {', '.join(FORMATS)}, together with --file -")
    if output is not None:
        check_output(output, file)
    prompts = None if file is None else read_prompts(file, input_format, encoding)
    given = prompt if text is None else text
    if text is None and prompts is None and not interactive and prompt in (None, STDIN):
        text = read_stdin(encoding)
    elif given is not None:
        text = valid_text(given)
    if sys.stdout is None:
        raise ConfigError("standard output is closed: there is nowhere to write the text")

    from .load import find_generator, load_generator
    from .output import Printer
    from .resuming import answer_file

    generator = load_generator(model_dir, config, device, dtype, compiled)
    if choices is not None:
        from .modes import print_choices

        print_choices(generator, [text] if prompts is None else prompts, valid_text(choices), as_json, file is not None)
        return
    printer = Printer(generator, as_json=as_json, echo=echo, verbose=verbose)
    if prompts and output is not None:
        # A text does not depend on `lookup`.
        options = f"{config.model_dump(exclude={'lookup'})}, dtype={dtype}"
        answer_file(printer, prompts, str(file), output, find_generator(model_dir), options)
    elif prompts:
        printer.answer_all(prompts, numbered=True)
    elif text is not None:
        printer.answer(text)
    if record:
        from .record import record_samples

        record_samples(model_dir, config, printer.samples)
    if interactive:
        from .interactive import interact

        interact(printer)


@inspect_app.command(help=INSPECT_HELP, cls=text_command())
def inspect(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Model or run directory.")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Text to read.")] = None,
    out: Annotated[Path | None, flag("The page to write. Default: inspect.html in the run, or here.")] = None,
    target: Annotated[
        str | None, flag("Encoder-decoder: the decoder's text; without it, the model's own answer.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=4, help="Tokens of a text to look at, from its beginning.")] = 256,
    debug: Debug = False,
) -> None:
    text = read_stdin() if text in (None, "-") else valid_text(text)
    if not text:
        raise ConfigError("the text is empty: give the model something to read")
    if out is None:
        out = run_of(model_dir) / "inspect.html"
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a directory" if out.is_dir() else "its directory does not exist"
        raise ConfigError(f"--out {out}: {problem}; name a file such as inspect.html")

    from .inspection.collect import write_inspection

    inspection = write_inspection(model_dir, text, out, None if target is None else valid_text(target), max_tokens)
    for note in inspection.notes:
        print(f"generate inspect: {note}", file=sys.stderr)
    print(f"{out}: {out.stat().st_size / 1e3:,.0f} kB", file=sys.stderr)


def run_of(model_dir: Path) -> Path:
    """The run that `model_dir` is or belongs to, as one of its models; the current folder if there is none."""
    place = model_dir.resolve()
    around = place.parents[:3] if place.name == "model" else ()
    return next((run for run in (model_dir, *around) if (run / "config.yaml").is_file()), Path())


def main(arguments: list[str]) -> None:
    """`inspect` is a command when it comes first; anything else generates, from a directory called ./inspect too."""
    if arguments[:1] == ["inspect"]:
        run_app(inspect_app, "generate inspect", arguments[1:])
    else:
        run_app(app, "generate", arguments)


def read_bias(texts: list[str]) -> dict[str, float]:
    """The arguments of --logit-bias. Raises ConfigError."""
    bias = {}
    for argument in map(valid_text, texts):
        text, _, value = argument.rpartition("=")
        try:
            bias[text] = float(value)
        except ValueError:
            raise ConfigError(
                f"--logit-bias {argument}: write TEXT=NUMBER, for example --logit-bias the=-100"
            ) from None
    return bias


def read_settings(flags: dict, overrides: list[str]) -> GenerateConfig:
    """GenerateConfig from flags, then `key=value` arguments. Raises ConfigError naming the flag or key."""
    for text in overrides:
        if "=" not in text:
            raise ConfigError(
                f"'{text}': only key=value may follow the prompt; put quotes around a prompt of several words"
            )
    given = load_config(GenerateConfig, overrides=overrides).model_dump(exclude_unset=True)
    config = build_config(GenerateConfig, {**flags, **given}, "the command line")
    # Both as typed and with escapes: '\\n' may be a line break or the beginning of \\newline.
    stop = dict.fromkeys(form for text in config.stop for form in (text, unescape(text)))
    return config.model_copy(update={"stop": list(stop)})


if __name__ == "__main__":
    main(sys.argv[1:])
