"""Train a classifier: encoded texts, batches, evaluation on the validation split, the loop."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from torch import Tensor, nn

from mini_llm.engine.batch import Batch
from mini_llm.engine.checkpoint.format import has_checkpoint
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.loop import train
from mini_llm.engine.loss import cross_entropy_sum
from mini_llm.engine.replay import Replay
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import content_hash, write_json
from mini_llm.engine.run.state import read_state
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.model import SequenceClassifier
from mini_llm.model.huggingface.directory import read_config
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer

from .config import FinetuneConfig
from .encode import EncodedTexts, collate, encode_texts, frame_kind, padding_id
from .examples import Splits
from .fit import Fit, balanced_weights, without_choice_by_few
from .pretrained import describe_start, load_classifier
from .recipe.bag_start import Start, can_start_as_bag, start_as_bag
from .recipe.head_start import distributions, fit_output_layer
from .recipe.mixed_texts import mixed_count, mixed_texts
from .recipe.texts import CHARACTERS_PER_SECOND, epoch, labelled_copies
from .recipe.window import choose_length
from .teacher import FOLDER, Teacher, fit_teacher, targets

# Steps with a teacher, at least: a few labelled texts are a few steps an epoch.
LEAST_STEPS = 300
# Labelled text that a linear teacher is cross-validated on, in all and per second of the budget.
MOST_CHARACTERS, LABELLED_CHARACTERS_PER_SECOND = 64_000_000, 50_000
# Share of the budget after which fitting the teacher tries no further candidate.
TEACHER_SHARE = 0.2


def train_classifier(
    config: FinetuneConfig,
    source: Path,
    splits: Splits,
    processes: PartialState,
    run: RunDirectory,
    tracker: Tracker,
    console: Console,
    loop: Callable[..., dict[str, float]] = train,
) -> None:
    settings = read_config(source)
    tokenizer = load_tokenizer(source, settings["vocab_size"])
    if tokenizer.remark:
        console.print(tokenizer.remark, markup=False)
    torch.manual_seed(config.seed)
    labels = np.array([example.label for example in splits.train])
    texts = [example.text for example in splits.train]
    started = time.perf_counter()
    # The weights of a checkpoint would replace the fitted ones; a replay may begin before the first checkpoint.
    resumes = has_checkpoint(run.path) and not isinstance(loop, Replay)
    known = read_state(run.path / "start.json", Start)
    if known is None and (resumes or isinstance(loop, Replay)):
        known = Start(bag=False)  # a run of an earlier release
    teacher, unlabelled = _fit_teacher(config, splits, texts, labels, processes, run, console)
    mixed: list[str] = []
    if teacher is not None:
        count = mixed_count(texts, len(unlabelled), config.mixed_texts, config.budget_seconds)
        mixed = mixed_texts(texts, known.mixed_texts if known else count, config.seed)
        if config.dropout is None:
            # Its noise is multiplied by the weights of the fitted output layer, and soft labels regularize.
            config = config.model_copy(update={"dropout": 0.0})
    max_length, note = choose_length(config, settings, tokenizer, texts)
    if note:
        console.print(note, markup=False)
    model = load_classifier(config, source, splits.names, tokenizer, max_length)
    length = min(max_length or sys.maxsize, model.config.max_position_embeddings)
    for note in describe_start(source, model) if config.weights == "pretrained" else ():
        console.print(note, markup=False)
    training = _encode(tokenizer, [*texts, *unlabelled, *mixed], model, length)
    held_out = _encode(tokenizer, [example.text for example in splits.validation], model, length)
    answers = labels if teacher is None else targets(teacher, labels, mixed)
    beginning = " ".join(tokenizer.id_to_token(i) for i in training.tokens[0][:8]).replace("\n", "\\n")
    console.print(
        f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens; the first text begins with {beginning}",
        markup=False,
    )
    if training.truncated:
        share = training.truncated / len(training.tokens)
        console.print(
            f"{share:.0%} of the training texts are longer than {length} tokens: only their beginning is read"
        )

    if known is None:
        copies = labelled_copies(len(texts), len(unlabelled), len(mixed), teacher)
        start = Start(bag=False, labelled_copies=copies, mixed_texts=len(mixed))
    else:
        start = known
    if mixed:
        console.print(f"{len(mixed):,} texts mixed from pieces of training texts are labelled by the teacher")
    if start.labelled_copies > 1:
        console.print(f"an epoch holds each labelled text {start.labelled_copies} times, each other text once")
    order = epoch(len(texts), len(unlabelled) + len(mixed), start.labelled_copies)
    fit = Fit(without_choice_by_few(config, len(splits.validation)), training.lengths[order], processes)
    pad = padding_id(tokenizer)

    def batch(rows: np.ndarray) -> Batch:
        rows = order[rows]
        return collate([training.tokens[i] for i in rows], answers[rows], pad, length)

    if config.weights == "pretrained" and not resumes:
        found = _head_start(config, source, model, training, answers, fit, pad, known, console)
        start = start.model_copy(update={"bag": found.bag, "bag_steps": found.bag_steps})
    if known is None and processes.is_main_process:
        write_json(run.path / "start.json", start.model_dump())
    held_out_labels = np.array([example.label for example in splits.validation])
    # Imports scikit-learn, which would count as time of the first evaluation.
    from .scores.agreement import validation_scores

    def held_out_batch(rows: np.ndarray) -> Batch:
        return collate([held_out.tokens[i] for i in rows], held_out_labels[rows], pad, length)

    def read(logits: Tensor, labels: Tensor, rows: np.ndarray) -> tuple[np.ndarray, float]:
        return logits.argmax(-1).cpu().numpy(), cross_entropy_sum(logits, labels).item()

    shown: list[int] = []  # the predictions of the last evaluation that go into a table

    def evaluate(model: nn.Module) -> dict[str, float]:
        found = fit.predict(model, held_out.lengths, held_out_batch, read)
        predictions = np.empty(len(held_out_labels), dtype=np.int64)
        for rows, (predicted, _) in found:
            predictions[rows] = predicted
        shown[:] = predictions[: config.tracking.samples].tolist()
        loss = sum(part for _, (_, part) in found) / len(held_out_labels)
        return validation_scores(loss, held_out_labels, predictions)

    def samples(_: nn.Module) -> tuple[list[str], list[list[str]]]:
        names, pairs = splits.names, zip(splits.validation, shown, strict=False)
        rows = [[example.text, names[example.label], names[label]] for example, label in pairs]
        return ["text", "label", "predicted"], rows

    data = config.data.model_copy(update={"max_length": length})
    least_steps = LEAST_STEPS if teacher else 1
    resolved = fit.resolve(model.config, run, tracker, least_steps, start.bag, data=data)
    console.print(
        f"{len(splits.train):,} training and {len(splits.validation):,} validation texts, {len(splits.names)} labels; "
        f"{fit.steps:,} steps of {config.batch_size} are {config.epochs:g} epochs; learning rate "
        f"{resolved.optim.lr:.2g}; budget {config.budget}"
    )
    kind = frame_kind(model.config.causal, model.config.is_encoder_decoder)
    sources = [example.source for example in splits.train]
    sources += [f"unlabelled {i}" for i in range(len(unlabelled))] + [f"mixed text {i}" for i in range(len(mixed))]
    fit.run(
        model,
        batch,
        evaluate,
        run,
        tracker,
        lambda directory: save_tokenizer(tokenizer, directory, kind, length, pad),
        metric=config.metric,
        larger_is_better=config.metric != "loss",
        seconds_used=time.perf_counter() - started,
        held_out=held_out.lengths,
        sources=[sources[i] for i in order],
        tokenizer_sha256=tokenizer.sha256,
        data_fingerprint=content_hash(
            [(row.text, row.label) for part in (splits.train, splits.validation) for row in part]
            + [(text, -1) for text in unlabelled]
        ),
        loop=loop,
        class_weights=balanced_weights(labels, len(splits.names)) if config.class_weights == "balanced" else None,
        samples=samples if config.tracking.samples else None,
    )


def _fit_teacher(
    config: FinetuneConfig,
    splits: Splits,
    texts: list[str],
    labels: np.ndarray,
    processes: PartialState,
    run: RunDirectory,
    console: Console,
) -> tuple[Teacher | None, list[str]]:
    """The linear teacher, if the run has one, and the unlabelled texts that it labels."""
    budget = config.budget_seconds or float("inf")
    if config.teacher == "none":
        return None, []
    if sum(map(len, texts)) > min(MOST_CHARACTERS, budget * LABELLED_CHARACTERS_PER_SECOND):
        console.print("no linear teacher: with this much labelled text it takes too much of the budget to fit")
        return None, []
    unlabelled = _within(splits.unlabelled, budget * CHARACTERS_PER_SECOND)
    with processes.main_process_first():
        teacher = fit_teacher(
            run.path / FOLDER, texts, labels, len(splits.names), unlabelled, config.seed, TEACHER_SHARE * budget
        )
    console.print(teacher.description, markup=False)
    if unlabelled and not config.data.unlabelled and not teacher.knows_unlabelled:
        console.print("the pretraining corpus does not help the teacher, so its texts are not learned from")
        return replace(teacher, unlabelled=teacher.unlabelled[:0]), []
    return teacher, unlabelled


def _head_start(
    config: FinetuneConfig,
    source: Path,
    model: SequenceClassifier,
    training: EncodedTexts,
    answers: np.ndarray,
    fit: Fit,
    pad: int,
    known: Start | None,
    console: Console,
) -> Start:
    """Fit the output layer, then embeddings and head as a bag of tokens where `known` says so, or if that is better.

    Returns how the model starts, without the copies of labelled texts.
    """
    started = time.perf_counter()
    budget, length = config.budget_seconds, int(training.lengths.max())
    found = fit_output_layer(model, training.tokens, answers, pad, length, budget, config.seed)
    if found is None:
        return Start(bag=False)
    note, texts, loss = found
    console.print(note, markup=False)
    bag = known.bag if known else None
    if bag is None:
        # A training step costs three forward passes.
        seconds_per_step = 3 * config.batch_size * (time.perf_counter() - started) / texts
        steps = min(fit.steps, config.max_steps or fit.steps, (budget or float("inf")) / seconds_per_step)
        able = can_start_as_bag(model, source, len(training.tokens), steps)
        bag = broadcast(able, fit.accelerator)
    if not bag:
        return Start(bag=False)
    soft = distributions(answers, model.config.num_labels)
    agree = partial(broadcast, accelerator=fit.accelerator)
    result = start_as_bag(model, training.tokens, soft, loss, budget, config.seed, known, agree)
    if result is None:
        return Start(bag=False)
    console.print(result[0], markup=False)
    return result[1]


def _within(texts: list[str], characters: float) -> list[str]:
    """Return the longest prefix of `texts` with at most `characters` characters in total."""
    return texts[: int(np.searchsorted(np.cumsum([len(text) for text in texts]), characters, side="right"))]


def _encode(tokenizer: Any, texts: list[str], model: SequenceClassifier, max_length: int) -> EncodedTexts:
    config = model.config
    return encode_texts(tokenizer, texts, config.causal, max_length, config.is_encoder_decoder)
