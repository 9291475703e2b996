"""Train a classifier: encoded texts, batches, evaluation on the validation split, the loop."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from rich.console import Console
from torch import Tensor, nn

from mini_llm.engine.batch import Batch, LengthBatches, ordered_batches, to_device
from mini_llm.engine.device import default_device
from mini_llm.engine.distributed.processes import make_accelerator, resolved_runtime
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.loop import train
from mini_llm.engine.loss import cross_entropy_sum
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import content_hash
from mini_llm.engine.run.tracker import Tracker
from mini_llm.model import SequenceClassifier
from mini_llm.model.huggingface.directory import read_config
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer

from .config import FinetuneConfig
from .encode import EncodedTexts, collate, encode_texts, padding_id
from .examples import Splits
from .pretrained import describe_start, load_classifier
from .recipe.head_start import fit_output_layer
from .recipe.texts import CHARACTERS_PER_SECOND
from .recipe.window import choose_length
from .teacher import FOLDER, Teacher, fit_teacher, targets

# Tokens per rank in one training forward pass, if micro_batch_size is not set.
MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 65_536}
# Steps with a teacher, at least: a few labelled texts are a few steps an epoch.
LEAST_STEPS = 300
# Labelled text that a linear teacher is cross-validated on, in all and per second of the budget.
MOST_CHARACTERS, LABELLED_CHARACTERS_PER_SECOND = 64_000_000, 50_000
# Validation texts below which they do not choose the weights.
FEW_HELD_OUT = 100


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
    teacher, unlabelled = _fit_teacher(config, splits, texts, labels, processes, run, console)
    if teacher is not None and config.dropout is None:
        # Its noise is multiplied by the weights of the fitted output layer, and soft labels of many texts regularize.
        config = config.model_copy(update={"dropout": 0.0})
    max_length, note = choose_length(config, settings, tokenizer, texts)
    if note:
        console.print(note, markup=False)
    model = load_classifier(config, source, splits.names, tokenizer, max_length)
    length = min(max_length or sys.maxsize, model.config.max_position_embeddings)
    for note in describe_start(source, model) if config.weights == "pretrained" else ():
        console.print(note, markup=False)
    training = _encode(tokenizer, [*texts, *unlabelled], model, length)
    held_out = _encode(tokenizer, [example.text for example in splits.validation], model, length)
    rows_of = [example.source for example in splits.train] + [f"unlabelled {i}" for i in range(len(unlabelled))]
    answers = labels if teacher is None else targets(teacher, labels)
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

    ranks = processes.num_processes
    device = default_device(config.runtime.device)
    accumulation = _accumulation(config, training.lengths, ranks, device)

    def batches_of(rank: int) -> LengthBatches:
        return LengthBatches(training.lengths, config.batch_size, config.seed, ranks, rank, accumulation)

    batches = batches_of(processes.process_index)
    micro_batch_size = max(1, config.batch_size // (accumulation * ranks))
    accelerator = make_accelerator(config.runtime, accumulation, micro_batch_size, config.optim.max_grad_norm)
    pad = padding_id(tokenizer)

    def batch(step: int) -> list[Batch]:
        return [collate([training.tokens[i] for i in rows], answers[rows], pad, length) for rows in batches.batch(step)]

    if config.weights == "pretrained" and (
        note := fit_output_layer(model, training.tokens, answers, pad, length, config.budget_seconds, config.seed)
    ):
        console.print(note, markup=False)
    held_out_labels = np.array([example.label for example in splits.validation])
    # Imports scikit-learn, which would count as time of the first evaluation.
    from .scores.agreement import validation_scores

    def evaluate(model: nn.Module) -> dict[str, float]:
        loss, predictions = _predict(
            model, held_out, held_out_labels, pad, length, config.evaluation_batch_size, accelerator
        )
        return validation_scores(loss, held_out_labels, predictions)

    least = LEAST_STEPS if teacher else 1
    steps = max(least, round(config.epochs * batches.steps_per_epoch))
    if len(splits.validation) < FEW_HELD_OUT:
        # The best of several evaluations on a few texts is luck: take the last weights.
        config = config.model_copy(update={"load_best": False, "patience": None})
    optim = config.optim.for_width(model.config.hidden_size)
    max_steps = min(config.max_steps or steps, steps)
    chosen: dict[str, Any] = {"run": config.run_name, "micro_batch_size": micro_batch_size, "max_steps": max_steps}
    chosen |= {"data": config.data.model_copy(update={"max_length": length}), "optim": optim.resolved()}
    chosen["runtime"] = resolved_runtime(config.runtime, compiled=config.runtime.compile is True)
    resolved = config.model_copy(update=chosen).model_dump(mode="json")
    run.resolve(resolved)
    tracker.config(resolved)
    mean_length = float(training.lengths.mean())
    console.print(
        f"{len(splits.train):,} training and {len(splits.validation):,} validation texts, {len(splits.names)} labels; "
        f"{steps:,} steps of {config.batch_size} are {config.epochs:g} epochs; learning rate {optim.lr:.2g}; "
        f"budget {config.budget}"
    )
    kind = "seq2seq" if model.config.is_encoder_decoder else "causal" if model.config.causal else "masked"
    loop(
        model,
        batch,
        evaluate,
        config.model_copy(update={"max_steps": max_steps, "optim": optim}),
        accelerator,
        run,
        tracker,
        lambda directory: save_tokenizer(tokenizer, directory, kind, length, pad),
        metric=f"val/{config.metric}",
        larger_is_better=config.metric != "loss",
        seconds_used=time.perf_counter() - started,
        evaluation_in_steps=held_out.lengths.sum() / (config.batch_size * mean_length),
        flops_per_token=lambda head_share: flops_per_token(model.config, round(mean_length), 0.0),
        documents=lambda step, rank, _: [rows_of[i] for rows in batches_of(rank).batch(step) for i in rows],
        class_weights=_class_weights(labels, len(splits.names)) if config.class_weights == "balanced" else None,
        metadata={
            "tokenizer_sha256": tokenizer.sha256,
            "data_fingerprint": content_hash(
                [(row.text, row.label) for part in (splits.train, splits.validation) for row in part]
                + [(text, -1) for text in unlabelled]
            ),
            "global_batch_size": config.batch_size,
        },
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
        teacher = fit_teacher(run.path / FOLDER, texts, labels, len(splits.names), unlabelled, config.seed)
    console.print(teacher.description, markup=False)
    if unlabelled and not config.data.unlabelled and not teacher.knows_unlabelled:
        console.print("the pretraining corpus does not help the teacher, so its texts are not learned from")
        return replace(teacher, unlabelled=teacher.unlabelled[:0]), []
    return teacher, unlabelled


def _within(texts: list[str], characters: float) -> list[str]:
    """Return the longest prefix of `texts` with at most `characters` characters in total."""
    return texts[: int(np.searchsorted(np.cumsum([len(text) for text in texts]), characters, side="right"))]


def _encode(tokenizer: Any, texts: list[str], model: SequenceClassifier, max_length: int) -> EncodedTexts:
    config = model.config
    return encode_texts(tokenizer, texts, config.causal, max_length, config.is_encoder_decoder)


def _accumulation(config: FinetuneConfig, lengths: np.ndarray, ranks: int, device: torch.device) -> int:
    """Return the micro-batches per step and rank that keep a forward pass within MICRO_BATCH_TOKENS."""
    if config.micro_batch_size:
        return max(1, -(-config.batch_size // (config.micro_batch_size * ranks)))
    tokens = config.batch_size / ranks * float(np.quantile(lengths, 0.9))
    return max(1, min(config.batch_size // ranks, round(tokens / MICRO_BATCH_TOKENS[device.type])))


def _class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return N / (classes * count), so that every class has the same total weight (King and Zeng 2001)."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


@torch.no_grad()
def _predict(
    model: nn.Module,
    texts: EncodedTexts,
    labels: np.ndarray,
    pad: int,
    max_length: int,
    batch_size: int,
    accelerator: Accelerator,
) -> tuple[float, np.ndarray]:
    """Return the mean loss and the predicted labels, in order. Batches are distributed over the ranks.

    All ranks run the same number of forward passes, because ZeRO-3 gathers weights in each. A repeated batch counts
    once.
    """
    batches = ordered_batches(texts.lengths, batch_size)
    found: list[tuple[np.ndarray, np.ndarray, float]] = []
    model.eval()
    for start in range(0, len(batches), accelerator.num_processes):
        mine = start + accelerator.process_index
        rows = batches[min(mine, len(batches) - 1)]
        batch = to_device(collate([texts.tokens[i] for i in rows], labels[rows], pad, max_length), accelerator.device)
        targets = batch.pop("labels")
        with accelerator.autocast():
            logits = model(**batch)
        if mine < len(batches):
            found.append((rows, logits.argmax(-1).cpu().numpy(), cross_entropy_sum(logits, targets).item()))
    model.train()
    if accelerator.num_processes > 1:
        found = gather_object(found)
    predictions = np.empty(len(labels), dtype=np.int64)
    for rows, predicted, _ in found:
        predictions[rows] = predicted
    return sum(loss for _, _, loss in found) / len(labels), predictions
