"""The command line of stage 5: `python -m scoring MODEL FILE ...` scores; choices, compare, drift and speed besides."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mini_llm.engine.cli import EXIT_CODES, Debug, Version, command_app, program, run_app

ME = program("scoring")
SCORE_HELP = f"""Score a model on files, each file a domain.

A decoder: loss, perplexity, bits per byte, loss by position, calibration of next-token probabilities; diversity of \
samples, and what samples and files share with the training data. An encoder: masked loss and accuracy, \
pseudo-perplexity. An encoder-decoder: BLEU, chrF and ROUGE on pairs. A classifier: its scores on labelled rows. \
Intervals (95 %) come from a bootstrap over documents.

Other commands, each with its own --help: choices, compare, drift, speed.

Bits per byte are those of lm-eval's rolling log-likelihood: windows of one context, each token counted once.

[bold]Examples[/bold]

  {ME} runs/gpt held-out.txt
  {ME} runs/gpt news.jsonl code.txt --stride 128 --json > scores.json
  {ME} runs/gpt held-out.txt --training corpus.txt
  {ME} runs/mlm held-out.txt
  {ME} runs/t5 pairs.tsv --source english --target german
  {ME} runs/gpt-classifier test.csv --label stars
  {ME} choices runs/gpt questions.jsonl --shots-file solved.jsonl
  {ME} compare runs/a runs/b --data held-out.txt
  {ME} drift runs/gpt january.jsonl february.jsonl
  {ME} speed runs/gpt

{EXIT_CODES}"""

CHOICES_HELP = f"""Answer multiple-choice questions by likelihood.

A row of FILE has a question, choices (a list of texts) and answer (the text of the right choice, or its number from \
0). The answer is the choice with the highest likelihood after the question; also given per character, as lm-eval's \
acc_norm.

[bold]Examples[/bold]

  {ME} choices runs/gpt questions.jsonl
  {ME} choices runs/gpt questions.jsonl --shots-file solved.jsonl --shots 4
  {ME} choices runs/gpt questions.jsonl --template $'Question: {{question}}\\nAnswer:'

{EXIT_CODES}"""

COMPARE_HELP = f"""Compare models on the same rows: A beside each of the others.

Prints the difference with its 95 % interval (paired bootstrap), wins and losses, and a paired permutation test \
(McNemar's exact test for questions and classifiers), adjusted for the number of models; then what each model costs. \
"No difference shown" means what it says: it is no proof that the models are equal.

[bold]Examples[/bold]

  {ME} compare runs/a runs/b --data held-out.txt
  {ME} compare runs/a runs/b runs/c --questions questions.jsonl --json
  {ME} compare runs/a-classifier runs/b-classifier --data test.csv

{EXIT_CODES}"""

DRIFT_HELP = f"""Test whether texts, or what a model says about them, have changed since a reference.

Input: length, unknown words, distribution of tokens, embeddings (MMD). Predictions: a decoder's loss and confidence, \
an encoder's masked loss, a classifier's labels and confidence. Quality: a classifier's accuracy, with --label. \
Thresholds come from random permutations of the texts and are adjusted for the number of tests, so that without drift \
1 of 20 calls raises an alarm (--level).

[bold]Examples[/bold]

  {ME} drift runs/gpt january.jsonl february.jsonl
  {ME} drift runs/gpt-classifier labelled.csv new.csv --text review --json > drift.json || alarm

Exit code: 6 if there is drift. {EXIT_CODES}"""

SPEED_HELP = f"""Measure latency and throughput of generation: a model here, or an OpenAI-compatible server by its URL.

Prompts have 4 to 200 words, other ones in every loop. First 1, 4 and 16 clients, each of which waits for its answer \
before it sends the next request; then requests that arrive at random times (Poisson), whether there is room or not, \
so that waiting counts.

[bold]Examples[/bold]

  {ME} speed runs/gpt
  {ME} speed runs/gpt --requests 64 --new-tokens 100 --rate 2 --json
  {ME} speed http://localhost:8080/v1 --served-model gpt

{EXIT_CODES}"""


class ScoreByDefault(TyperGroup):
    """A group whose command `score` runs when the arguments name no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *(o for p in self.params for o in p.opts)}
        named = args[0] in known if args else ctx.resilient_parsing
        return super().parse_args(ctx, args if named else ["score", *args])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands, and what `score` takes."""
        score = self.commands["score"]
        arguments = score.make_context(ctx.info_name, [], resilient_parsing=True)
        own = [item for item in super().shell_complete(ctx, incomplete) if not item.value.startswith("-")]
        return [*own, *score.shell_complete(arguments, incomplete)] + [
            item
            for parameter in score.params
            if not parameter.opts[0].startswith("-")
            for item in parameter.shell_complete(arguments, incomplete)
        ]


class Score(TyperCommand):
    """The command that runs by default: its help names the others too."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        shown = parent.info_name if parent is not None and not extra.get("resilient_parsing") else info_name
        # Usage and errors show `python -m scoring`, as it is typed.
        return super().make_context(shown, args, parent=None if shown != info_name else parent, **extra)


app = command_app(SCORE_HELP, ScoreByDefault)


def _models(incomplete: str) -> list[str]:
    """Runs that hold a model; the shell completes other paths."""
    return [str(path.parent) for path in Path("runs").glob("*/model") if str(path.parent).startswith(incomplete)]


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Run or model directory.", autocompletion=_models)]
Text = Annotated[str, typer.Option(help="Column that holds the text; tables only.")]
Most = Annotated[int | None, typer.Option("--max-documents", min=1, help="Rows of each file, at most.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of masks, samples and resampling.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DType = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens of a forward pass, at most; one window at least.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command(help=SCORE_HELP, cls=Score, short_help="Score a model on files.")
def score(
    model: Model,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Texts, pairs or labelled rows.")],
    text: Text = "text",
    source: Annotated[str, typer.Option(help="Encoder-decoder: column of the source text.")] = "source",
    target: Annotated[str, typer.Option(help="Encoder-decoder: column of the target text.")] = "target",
    label: Annotated[str, typer.Option(help="Classifier: column of the label.")] = "label",
    stride: Annotated[
        int | None, typer.Option(min=1, help="Decoder: tokens predicted by a window; less gives more context.")
    ] = None,
    most: Most = None,
    samples: Annotated[int, typer.Option(min=0, help="Decoder: texts to sample; 0: none.")] = 16,
    sample_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sample, at most.")] = 100,
    pseudo_tokens: Annotated[
        int, typer.Option(min=0, help="Encoder: tokens for the pseudo-perplexity; 0: without it.")
    ] = 256,
    training: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Training data to look for copies in.", show_default="the run's corpus"),
    ] = None,
    seed: Seed = 0,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    from .report import emit, show_scores
    from .score import Request
    from .score import score as compute

    counts: dict[str, Any] = {"samples": samples, "sample_tokens": sample_tokens, "pseudo_tokens": pseudo_tokens}
    columns: dict[str, Any] = {"text": text, "source": source, "target": target, "label": label}
    common: dict[str, Any] = {
        "most": most,
        "seed": seed,
        "batch_tokens": batch_tokens,
        "device": device,
        "dtype": dtype,
    }
    request = Request(files, **columns, stride=stride, training=training or (), **counts, **common)
    emit(compute(model, request), as_json, show_scores)


@app.command(help=CHOICES_HELP, short_help="Answer multiple-choice questions by likelihood.")
def choices(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Questions: JSONL, JSON or Parquet.")],
    shots_file: Annotated[Path | None, typer.Option(help="Solved questions to put before each one.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Solved questions from --shots-file.", show_default="3")
    ] = None,
    template: Annotated[str, typer.Option(help="How a question is shown, with {question}.")] = "{question}",
    most: Most = None,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    from mini_llm.engine.errors import ConfigError

    from .choices import read_shots, score_choices
    from .report import emit, show_choices
    from .subject import KINDS, load_subject

    solved = read_shots(shots_file, shots, file)
    subject = load_subject(model, device, dtype)
    if subject.kind != "causal":
        raise ConfigError(f"{model}: choices needs a decoder, not {KINDS[subject.kind]}")
    emit(score_choices(subject, file, template, solved, most, batch_tokens), as_json, show_choices)


@app.command(help=COMPARE_HELP, short_help="Compare models on the same rows: is the difference chance?")
def compare(
    models: Annotated[list[Path], typer.Argument(metavar="A B ...", help="Models.", autocompletion=_models)],
    data: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Texts, pairs or labelled rows; repeat for several.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="Multiple-choice questions, as `choices` reads them.")] = None,
    shots_file: Annotated[Path | None, typer.Option(help="Solved questions to put before each one.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Solved questions from --shots-file.", show_default="3")
    ] = None,
    template: Annotated[str, typer.Option(help="How a question is shown, with {question}.")] = "{question}",
    text: Text = "text",
    source: Annotated[str, typer.Option(help="Encoder-decoder: column of the source text.")] = "source",
    target: Annotated[str, typer.Option(help="Encoder-decoder: column of the target text.")] = "target",
    label: Annotated[str, typer.Option(help="Classifier: column of the label.")] = "label",
    most: Most = None,
    seed: Seed = 0,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    from mini_llm.engine.errors import ConfigError

    from .comparing.run import Request, compare_models
    from .report import emit, show_comparison
    from .subject import kind_of

    if all(kind_of(path)[1] == "classifier" for path in models):
        from mini_llm.stages import load

        if data and len(data) > 1:
            raise ConfigError("classifiers are compared on one file of labelled rows: give --data once")
        runs = load("finetune", "scores.compare_runs")
        runs.print_comparisons(*runs.compare_classifiers(models, data[0] if data else None, text, label), as_json)
        return
    columns: dict[str, Any] = {"text": text, "source": source, "target": target}
    asked: dict[str, Any] = {"questions": questions, "template": template, "shots_file": shots_file, "shots": shots}
    common: dict[str, Any] = {
        "most": most,
        "seed": seed,
        "batch_tokens": batch_tokens,
        "device": device,
        "dtype": dtype,
    }
    emit(compare_models(models, Request(data or (), **asked, **columns, **common)), as_json, show_comparison)


@app.command(help=DRIFT_HELP, short_help="Test whether texts have changed since a reference; exit code 6 if so.")
def drift(
    model: Model,
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="Texts as they were.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Texts as they are.")],
    text: Text = "text",
    label: Annotated[str | None, typer.Option(help="Classifier: column of the label, in both files.")] = None,
    rows: Annotated[int, typer.Option(min=2, help="Texts of each file, drawn at random, at most.")] = 1000,
    permutations: Annotated[int, typer.Option(min=19, help="Random permutations; p is at least 1 / (this + 1).")] = 999,
    level: Annotated[float, typer.Option(min=1e-4, max=1, help="Share of false alarms.")] = 0.05,
    seed: Seed = 0,
    batch_tokens: BatchTokens = 8192,
    device: Device = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    from .drifting.run import DRIFT, find_drift
    from .report import emit, show_drift
    from .subject import load_subject

    subject = load_subject(model, device, dtype)
    found = find_drift(subject, reference, new, text, label, rows, permutations, level, seed, batch_tokens)
    emit(found, as_json, show_drift)
    if found["drift"]:
        raise typer.Exit(DRIFT)


@app.command(help=SPEED_HELP, short_help="Measure latency and throughput of generation.")
def speed(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|URL", help="Run, model directory, or server.", autocompletion=_models)
    ],
    concurrency: Annotated[list[int], typer.Option(min=1, help="Clients; repeat for several.")] = [1, 4, 16],  # noqa: B006
    requests: Annotated[int, typer.Option(min=1, help="Requests of each loop.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 32,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Arrivals per second.", show_default="0.7 of the best throughput")
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="Texts to take prompts from.")] = None,
    prompt_words: Annotated[int, typer.Option(help="Words of the longest prompt.")] = 200,
    text: Text = "text",
    served_model: Annotated[str, typer.Option(help="URL: name of the model on the server.")] = "default",
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16; int8 on a CPU.")] = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    from .report import emit, show_speed
    from .speed.run import measure
    from .texts import read_texts

    texts = [document.text for document in read_texts(prompts, text, 1000)] if prompts else None
    loops: dict[str, Any] = {"concurrency": concurrency, "requests": requests, "new_tokens": new_tokens, "rate": rate}
    where: dict[str, Any] = {"served_model": served_model, "device": device, "dtype": dtype}
    found = measure(target, **loops, texts=texts, longest=prompt_words, seed=seed, **where)
    emit(found, as_json, show_speed)


if __name__ == "__main__":
    run_app(app, "scoring")
