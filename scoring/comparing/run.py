"""`python -m scoring compare A B [C ...]`: score the models on the same rows, test the differences, measure costs."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mini_llm.engine.errors import ConfigError
from mini_llm.stages import load

from ..choices import answer, make_prompts, read_questions, read_shots
from ..decoder import score_decoder
from ..embeddings import embed
from ..masked import score_encoder
from ..pairs import decode, read_pairs
from ..subject import KINDS, Subject, kind_of, load_subject
from ..texts import read_texts
from .statistics import Paired, adjust, compare_correct, compare_ratios

GENERATED = 16  # tokens written to measure the speed


@dataclass(frozen=True)
class Request:
    """What to compare on: files of texts, tables of pairs, or one file of questions."""

    files: Sequence[str]
    questions: Path | None = None
    template: str = "{question}"
    shots_file: Path | None = None
    shots: int | None = None
    text: str = "text"
    source: str = "source"
    target: str = "target"
    most: int | None = None
    seed: int = 0
    batch_tokens: int = 8192
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Rows:
    """What a model got on every row: `above` / `below` is the score, or `correct` on questions."""

    above: np.ndarray
    below: np.ndarray
    cost: dict[str, float]


def compare_models(paths: Sequence[Path], request: Request) -> dict[str, Any]:
    """Compare the first of `paths` with each of the others. Raises ConfigError for models of different kinds."""
    if len(paths) < 2:
        raise ConfigError("compare needs two models or more, for example: scoring compare runs/a runs/b --data FILE")
    kinds = {path: kind_of(path)[1] for path in paths}
    if len(set(kinds.values())) > 1:
        named = ", ".join(f"{path} is {KINDS[kind]}" for path, kind in kinds.items())
        raise ConfigError(f"models of different kinds have no score in common: {named}")
    kind = kinds[paths[0]]
    if request.questions is not None and kind != "causal":
        raise ConfigError(f"--questions compares decoders, but {paths[0]} is {KINDS[kind]}; give --data FILE")
    if request.questions is None and not request.files:
        raise ConfigError("name the rows to compare on: --data FILE, or --questions FILE for multiple choice")
    found = []
    fingerprints = []
    for path in paths:
        subject = load_subject(path, request.device, request.dtype)
        if kind == "masked":
            fingerprints.append(fingerprint(subject, request))
            if fingerprints[-1] != fingerprints[0]:
                raise ConfigError(
                    f"{paths[0]} and {path} have different tokenizers or contexts, so their masked tokens are not the "
                    "same rows. Compare encoders by a classifier fine-tuned on each: finetune compare"
                )
        found.append(score_rows(subject, kind, request))
    pairs = adjust([test(kind, request, found[0], other) for other in found[1:]])
    names = [str(path) for path in paths]
    return {
        "pairs": [
            {**asdict(pair), "a": names[0], "b": name, "verdict": pair.verdict(names[0], name)}
            for name, pair in zip(names[1:], pairs, strict=True)
        ],
        "models": [{"model": name, **rows.cost} for name, rows in zip(names, found, strict=True)],
    }


def fingerprint(subject: Subject, request: Request) -> tuple[Any, ...]:
    """What decides which tokens are masked: the ids of the first text, the vocabulary and the context."""
    (first,) = read_texts(request.files[0], request.text, 1)
    tokenizer = subject.tokenizer
    return tuple(tokenizer.encode(first.text)), tokenizer.vocab_size, tokenizer.mask_id, subject.context


def score_rows(subject: Subject, kind: str, request: Request) -> Rows:
    """Score one model on all rows."""
    if kind != "seq2seq":
        embed(subject, [[1, 2, 3]])  # the first pass of a process is slower
    start = time.perf_counter()
    if request.questions is not None:
        questions = read_questions(request.questions, request.most)
        shots = read_shots(request.shots_file, request.shots, request.questions)
        prompts = make_prompts(questions, request.template, shots)
        correct = answer(subject, questions, prompts, request.batch_tokens).correct
        above, below = correct.astype(float), np.ones(len(correct))
    elif kind == "seq2seq":
        from sacrebleu import CHRF

        pairs = [pair for f in request.files for pair in read_pairs(f, request.source, request.target, request.most)]
        texts, metric = decode(subject, pairs), CHRF()
        scores = [metric.sentence_score(text, [pair.target]).score for text, pair in zip(texts, pairs, strict=True)]
        above, below = np.array(scores), np.ones(len(scores))
    else:
        options = {"most": request.most, "batch_tokens": request.batch_tokens}
        if kind == "causal":
            scores = score_decoder(subject, request.files, request.text, **options)
        else:
            scores = score_encoder(subject, request.files, request.text, request.seed, **options)
        units = np.concatenate([tally.units() for tally in scores.tallies.values()])
        above, below = units[:, 0], units[:, 2 if kind == "causal" else 1]
    seconds = time.perf_counter() - start
    cost = {"parameters": subject.parameters, "seconds": seconds, "milliseconds_per_row": 1e3 * seconds / len(above)}
    if kind == "causal":
        cost["milliseconds_per_generated_token"] = generation_milliseconds(subject, request)
    return Rows(above, below, cost)


def test(kind: str, request: Request, a: Rows, b: Rows) -> Paired:
    """Test the difference of two models."""
    if request.questions is not None:
        return compare_correct("accuracy", a.above, b.above, request.seed)
    if len(a.above) != len(b.above) or not np.array_equal(a.below, b.below):
        raise ConfigError("the models did not score the same rows: the files changed meanwhile. Repeat the comparison")
    name, scale = {
        "causal": ("bits per byte", 1 / np.log(2)),
        "masked": ("masked loss (nats)", 1.0),
        "seq2seq": ("chrF", 1.0),
    }[kind]
    return compare_ratios(name, a.above, b.above, a.below, scale, kind != "seq2seq", request.seed)


def generation_milliseconds(subject: Subject, request: Request) -> float:
    """Return the time of a greedy token, without the first, in milliseconds: the better of two texts."""
    settings = load("generate", "config").GenerateConfig(temperature=0, max_new_tokens=GENERATED)
    generator = load("generate", "load").load_generator(subject.run, settings, request.device, request.dtype)
    times = []
    for i in range(2):
        sample = generator.sample("the", i)
        for _ in generator.stream(sample):
            pass
        if len(sample.ids) > 1:
            times.append((sample.seconds - sample.seconds_to_first_token) / (len(sample.ids) - 1))
    return 1e3 * min(times) if times else float("nan")
