"""Train a model of a task with the loop of mini_llm/engine, and evaluate it on the validation rows."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from rich.console import Console
from torch import nn

from mini_llm.engine.batch import Batch, LengthBatches, ordered_batches, to_device
from mini_llm.engine.device import default_device
from mini_llm.engine.distributed.processes import make_accelerator, resolved_runtime
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.loop import train
from mini_llm.engine.loss import cross_entropy_sum
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import content_hash, read_json, write_json
from mini_llm.engine.run.tracker import Tracker
from mini_llm.model import HEADS, Model, load_model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer

from ..config import FinetuneConfig
from ..encode import padding_id
from ..pretrained import ROTARY, describe_start
from ..recipe.window import choose_length
from ..training import FEW_HELD_OUT, MICRO_BATCH_TOKENS
from .encoder import Encoder, Window, collate
from .metrics.bootstrap import point_scores
from .registry import FILE, task_file
from .regression import Regression
from .task import Parts, Row, Task


def train_task(
    task: Task,
    config: FinetuneConfig,
    source: Path,
    parts: Parts,
    processes: PartialState,
    run: RunDirectory,
    tracker: Tracker,
    console: Console,
    loop: Callable[..., dict[str, float]] = train,
) -> None:
    """Train `task` from the pretrained model in `source` and write run.model."""
    settings = read_config(source)
    tokenizer = load_tokenizer(source, settings["vocab_size"])
    if tokenizer.remark:
        console.print(tokenizer.remark, markup=False)
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    length = config.data.max_length
    if task.head == "classifier":  # the others read long texts in windows
        texts = [f"{row.text} {row.pair or ''}" for row in parts.train]
        length, note = choose_length(config, settings, tokenizer, texts)
        if note:
            console.print(note, markup=False)
    model = load_task_model(task, config, source, tokenizer, length)
    for note in describe_start(source, model) if config.weights == "pretrained" else ():
        console.print(note, markup=False)
    if isinstance(task, Regression):
        task.standardize(parts.train, has_bias=hasattr(model, "classifier"))
    max_length = min(length or sys.maxsize, model.config.max_position_embeddings)
    encoder = Encoder(tokenizer, model.config, max_length)
    training = task.windows(parts.train, encoder)
    if encoder.truncated:
        console.print(
            f"{encoder.truncated / len(parts.train):.0%} of the training texts are longer than {max_length} tokens: "
            "only their beginning is read"
        )
    held_out = task.windows(parts.validation, encoder)
    lengths = np.array([len(window.tokens) for window in training])
    ranks, device = processes.num_processes, default_device(config.runtime.device)
    accumulation = _accumulation(config, lengths, ranks, device)

    def batches_of(rank: int) -> LengthBatches:
        return LengthBatches(lengths, config.batch_size, config.seed, ranks, rank, accumulation)

    batches = batches_of(processes.process_index)
    micro_batch_size = max(1, config.batch_size // (accumulation * ranks))
    accelerator = make_accelerator(config.runtime, accumulation, micro_batch_size, config.optim.max_grad_norm)

    def batch(step: int) -> list[Batch]:
        return [
            collate([training[i] for i in rows], encoder.pad, max_length, task.by_token) for rows in batches.batch(step)
        ]

    def evaluate(model: nn.Module) -> dict[str, float]:
        loss, logits = _predict(model, task, held_out, encoder, config.evaluation_batch_size, accelerator)
        predictions = task.decode(parts.validation, held_out, logits)
        scores = point_scores(task.statistics(parts.validation, predictions), task.scores)
        return {"val/loss": loss, **{f"val/{name}": value for name, value in scores.items()}}

    steps = max(1, round(config.epochs * batches.steps_per_epoch))
    if len(parts.validation) < FEW_HELD_OUT:
        # The best of several evaluations on a few texts is luck: take the last weights.
        config = config.model_copy(update={"load_best": False, "patience": None})
    optim = config.optim.for_width(model.config.hidden_size)
    max_steps = min(config.max_steps or steps, steps)
    metric = task.metric if config.metric == "accuracy" else config.metric
    chosen: dict[str, Any] = {"run": config.run_name, "micro_batch_size": micro_batch_size, "max_steps": max_steps}
    chosen |= {"task": task.name, "data": config.data.model_copy(update={"max_length": max_length})}
    chosen |= {"optim": optim.resolved()}
    chosen["runtime"] = resolved_runtime(config.runtime, compiled=config.runtime.compile is True)
    resolved = config.model_copy(update=chosen).model_dump(mode="json")
    run.resolve(resolved)
    tracker.config(resolved)
    console.print(
        f"{len(parts.train):,} training and {len(parts.validation):,} validation rows in {len(training):,} and "
        f"{len(held_out):,} windows; {steps:,} steps of {config.batch_size} are {config.epochs:g} epochs; learning "
        f"rate {optim.lr:.2g}; budget {config.budget}; best weights by {metric}"
    )
    kind = "seq2seq" if model.config.is_encoder_decoder else "causal" if model.config.causal else "masked"

    def save_extras(directory: Path) -> None:
        save_tokenizer(tokenizer, directory, kind, max_length, encoder.pad)
        if training[0].types is not None:
            # AutoTokenizer passes token types on only if they are named here.
            settings = read_json(directory / "tokenizer_config.json")
            names = ["input_ids", "token_type_ids", "attention_mask"]
            write_json(directory / "tokenizer_config.json", {**(settings or {}), "model_input_names": names})
        write_json(directory / FILE, task_file(task))

    loop(
        model,
        batch,
        evaluate,
        config.model_copy(update={"max_steps": max_steps, "optim": optim}),
        accelerator,
        run,
        tracker,
        save_extras,
        metric=f"val/{metric}",
        larger_is_better=metric not in ("loss", *task.smaller_is_better),
        seconds_used=time.perf_counter() - started,
        evaluation_in_steps=sum(len(w.tokens) for w in held_out) / (config.batch_size * float(lengths.mean())),
        flops_per_token=lambda head_share: flops_per_token(model.config, round(float(lengths.mean())), 0.0),
        documents=lambda step, rank, _: [
            parts.train[training[i].row].place for rows in batches_of(rank).batch(step) for i in rows
        ],
        class_weights=_class_weights(training, task) if config.class_weights == "balanced" else None,
        objective=task.objective,
        metadata={
            "tokenizer_sha256": tokenizer.sha256,
            "data_fingerprint": content_hash(_content(row) for rows in (parts.train, parts.validation) for row in rows),
            "global_batch_size": config.batch_size,
        },
    )
    if isinstance(task, Regression) and accelerator.is_main_process and loop is train:
        task.fold(run.model)


def load_task_model(
    task: Task, config: FinetuneConfig, source: Path, tokenizer: Any, max_length: int | None = None
) -> Model:
    """Load the pretrained trunk with the head of the task, or build the same architecture untrained.

    max_length: tokens to read at most; rotary positions need no weights, so that it may exceed those of pretraining. A
    model that was trained on other questions keeps its output layer.
    """
    changes: dict[str, Any] = {"dropout": config.dropout_or_default, "pad_token_id": padding_id(tokenizer)}
    if task.labels:
        changes |= {"id2label": dict(enumerate(task.labels)), "problem_type": task.problem_type}
    settings = read_config(source)
    if settings["model_type"] == "modernbert":
        changes["classifier_pooling"] = "mean" if config.pooling == "auto" else config.pooling
    if max_length is not None and settings["model_type"] in ROTARY:
        changes["max_position_embeddings"] = max(max_length, settings["max_position_embeddings"])
    model = load_model(source, head=task.head, **changes)
    return HEADS[task.head](model.config) if config.weights == "random" else model


def _accumulation(config: FinetuneConfig, lengths: np.ndarray, ranks: int, device: torch.device) -> int:
    """Return the micro-batches per step and rank that keep a forward pass within MICRO_BATCH_TOKENS."""
    if config.micro_batch_size:
        return max(1, -(-config.batch_size // (config.micro_batch_size * ranks)))
    tokens = config.batch_size / ranks * float(np.quantile(lengths, 0.9))
    return max(1, min(config.batch_size // ranks, round(tokens / MICRO_BATCH_TOKENS[device.type])))


def _class_weights(windows: Sequence[Window], task: Task) -> torch.Tensor:
    """Return N / (classes * count) of each label, so that every class has the same total weight."""
    labels = np.concatenate([np.atleast_1d(window.labels) for window in windows])
    counts = np.bincount(labels[labels >= 0], minlength=len(task.labels))
    return torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)


def _content(row: Row) -> list[Any]:
    return [row.text, row.pair, row.target, row.words]


@torch.no_grad()
def _predict(
    model: nn.Module, task: Task, windows: list[Window], encoder: Encoder, batch_size: int, accelerator: Accelerator
) -> tuple[float, list[np.ndarray]]:
    """Return the mean loss per label and the logits of each window. Batches are distributed over the ranks.

    All ranks run the same number of forward passes, because ZeRO-3 gathers weights in each. A repeated batch counts
    once.
    """
    batches = ordered_batches([len(window.tokens) for window in windows], batch_size)
    found: list[tuple[np.ndarray, list[np.ndarray], float, float]] = []
    model.eval()
    for start in range(0, len(batches), accelerator.num_processes):
        mine = start + accelerator.process_index
        rows = batches[min(mine, len(batches) - 1)]
        batch = collate([windows[i] for i in rows], encoder.pad, encoder.max_length, task.by_token)
        batch = to_device(batch, accelerator.device)
        labels = batch.pop("labels")
        with accelerator.autocast():
            logits = model(**batch).float()
        if mine < len(batches):
            objective = task.objective
            loss = cross_entropy_sum(logits, labels) if objective is None else objective.loss_sum(logits, labels)
            count = float((labels >= 0).sum()) if objective is None else objective.count(labels)
            values = logits.cpu().numpy()
            trimmed = [task.trimmed(values[place], windows[i]) for place, i in enumerate(rows)]
            found.append((rows, trimmed, loss.item(), count))
    model.train()
    if accelerator.num_processes > 1:
        found = gather_object(found)
    logits_of: list[np.ndarray] = [np.zeros(0)] * len(windows)
    for rows, values, _, _ in found:
        for index, value in zip(rows, values, strict=True):
            logits_of[index] = value
    return sum(part[2] for part in found) / max(sum(part[3] for part in found), 1), logits_of
