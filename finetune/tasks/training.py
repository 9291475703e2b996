"""Train a model of a task with the loop of mini_llm/engine, and evaluate it on the validation rows."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from torch import Tensor, nn

from mini_llm.engine.batch import Batch
from mini_llm.engine.loop import train
from mini_llm.engine.loss import cross_entropy_sum
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import content_hash, read_json, write_json
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.model import Model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer

from ..config import FinetuneConfig
from ..encode import frame_kind
from ..fit import Fit, balanced_weights, without_choice_by_few
from ..pretrained import describe_start, load_with_head
from ..recipe.window import choose_length
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
    fit = Fit(without_choice_by_few(config, len(parts.validation)), token_counts(training), processes)

    def batch(windows: Sequence[Window], rows: np.ndarray) -> Batch:
        return collate([windows[i] for i in rows], encoder.pad, max_length, task.by_token)

    def read(logits: Tensor, labels: Tensor, rows: np.ndarray) -> tuple[list[np.ndarray], float, float]:
        logits, objective = logits.float(), task.objective
        loss = cross_entropy_sum(logits, labels) if objective is None else objective.loss_sum(logits, labels)
        count = float((labels >= 0).sum()) if objective is None else objective.count(labels)
        values = logits.cpu().numpy()
        return [task.trimmed(values[place], held_out[i]) for place, i in enumerate(rows)], loss.item(), count

    shown: list[list[str]] = []  # the predictions of the last evaluation that go into a table

    def evaluate(model: nn.Module) -> dict[str, float]:
        found = fit.predict(model, token_counts(held_out), partial(batch, held_out), read)
        logits: list[np.ndarray] = [np.zeros(0)] * len(held_out)
        for rows, (values, _, _) in found:
            for index, value in zip(rows, values, strict=True):
                logits[index] = value
        loss = sum(part[1] for _, part in found) / max(sum(part[2] for _, part in found), 1)
        predictions = task.decode(parts.validation, held_out, logits)
        shown[:] = [
            [row.text, str(row.target), *map(str, task.output(row, prediction).values())]
            for row, prediction in zip(parts.validation[: config.tracking.samples], predictions, strict=False)
        ]
        scores = point_scores(task.statistics(parts.validation, predictions), task.scores)
        return {"val/loss": loss, **{f"val/{name}": value for name, value in scores.items()}}

    metric = task.metric if config.metric == "accuracy" else config.metric
    data = config.data.model_copy(update={"max_length": max_length})
    resolved = fit.resolve(model.config, run, tracker, task=task.name, data=data)
    console.print(
        f"{len(parts.train):,} training and {len(parts.validation):,} validation rows in {len(training):,} and "
        f"{len(held_out):,} windows; {fit.steps:,} steps of {config.batch_size} are {config.epochs:g} epochs; learning "
        f"rate {resolved.optim.lr:.2g}; budget {config.budget}; best weights by {metric}"
    )

    def save_extras(directory: Path) -> None:
        kind = frame_kind(model.config.causal, model.config.is_encoder_decoder)
        save_tokenizer(tokenizer, directory, kind, max_length, encoder.pad)
        if training[0].types is not None:
            # AutoTokenizer passes token types on only if they are named here.
            settings = read_json(directory / "tokenizer_config.json")
            names = ["input_ids", "token_type_ids", "attention_mask"]
            write_json(directory / "tokenizer_config.json", {**(settings or {}), "model_input_names": names})
        write_json(directory / FILE, task_file(task))

    fit.run(
        model,
        partial(batch, training),
        evaluate,
        run,
        tracker,
        save_extras,
        metric=metric,
        larger_is_better=metric not in ("loss", *task.smaller_is_better),
        seconds_used=time.perf_counter() - started,
        held_out=token_counts(held_out),
        sources=[parts.train[window.row].place for window in training],
        tokenizer_sha256=tokenizer.sha256,
        data_fingerprint=content_hash(_content(row) for rows in (parts.train, parts.validation) for row in rows),
        loop=loop,
        class_weights=_class_weights(training, task) if config.class_weights == "balanced" else None,
        objective=task.objective,
        samples=(lambda _: (["text", "label", *task.outputs()], shown)) if config.tracking.samples else None,
    )
    if isinstance(task, Regression) and processes.is_main_process and loop is train:
        task.fold(run.model)


def load_task_model(
    task: Task, config: FinetuneConfig, source: Path, tokenizer: Any, max_length: int | None = None
) -> Model:
    """Load the pretrained trunk with the head of the task; see load_with_head.

    A model that was trained on other questions keeps its output layer.
    """
    changes: dict[str, Any] = {}
    if task.labels:
        changes = {"id2label": dict(enumerate(task.labels)), "problem_type": task.problem_type}
    return load_with_head(config, source, task.head, tokenizer, max_length, **changes)


def token_counts(windows: Sequence[Window]) -> np.ndarray:
    return np.array([len(window.tokens) for window in windows])


def _class_weights(windows: Sequence[Window], task: Task) -> Tensor:
    """Return the weight of each label, of tokens where there is one label per token."""
    labels = np.concatenate([np.atleast_1d(window.labels) for window in windows])
    return balanced_weights(labels[labels >= 0], len(task.labels))


def _content(row: Row) -> list[Any]:
    return [row.text, row.pair, row.target, row.words]
