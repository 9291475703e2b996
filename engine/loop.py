"""The one training loop, for pretraining and fine-tuning alike: steps, evaluations, checkpoints, signals, resume."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field, field_validator
from torch import Tensor, nn

from engine.anomalies import Anomalies, Documents
from engine.checkpoint import Decorate, export_model, latest_checkpoint, load_checkpoint, save_best, save_checkpoint
from engine.cli import parse_duration
from engine.config import Config
from engine.evaluate import Batch
from engine.optim import OptimConfig
from engine.pace import Pace, broadcast
from engine.progress import Progress
from engine.run_directory import RunDirectory
from engine.runtime import (
    DTYPES,
    RuntimeConfig,
    matmul_ceiling,
    resolve_precision,
    seed_step,
)
from engine.schedule import ScheduleConfig
from engine.sharding import gather_weights, unwrap
from engine.signals import Interrupted, StopRequest
from engine.step import Training, prepare, train_step
from engine.tracking import Tracker
from model import load_model


class LoopConfig(Config):
    """What the loop reads. Steps and cadences left at None follow from the budget and the measured speed."""

    max_steps: int | None = Field(None, ge=1, description="optimizer steps at most")
    budget: str | None = Field(None, description="wall time of training (30s, 10m, 4h); None: no bound")
    seed: int = Field(0, ge=0, description="data order, masks and dropout are functions of (seed, step)")
    log_every: int = Field(1, ge=1, description="steps between rows of metrics.jsonl")
    evaluate_every: int | None = Field(None, ge=1, description="steps between evaluations on the validation set")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; None: about one a minute")
    keep_last: int = Field(2, ge=1, description="checkpoints kept")
    keep: Literal["best", "last"] = Field("best", description="which weights become model/")
    patience: int | None = Field(None, ge=1, description="evaluations without a better one before stopping early")
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_a_time(cls, value: Any) -> Any:
        if value is None:
            return None
        parse_duration(str(value))
        return str(value)

    @property
    def budget_seconds(self) -> float | None:
        return parse_duration(self.budget) if self.budget else None


# Keys that may change between launches of one run: how the same steps are computed and recorded, not which ones.
HARMLESS = (
    *("log_every", "evaluate_every", "save_every", "keep_last", "patience", "micro_batch_size"),
    *("runtime.compile", "runtime.zero_stage", "runtime.deepspeed"),
    *("runtime.precision", "runtime.gradient_checkpointing", "runtime.hang_timeout"),
)


@dataclass
class Progressed:
    """What a checkpoint remembers beside tensors."""

    step: int = 0
    elapsed: float = 0.0
    best_step: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    # Evaluations since the best one.
    waited: int = 0
    anomalies: Anomalies = field(default_factory=Anomalies)


def train(
    model: nn.Module,
    batches: Callable[[int], list[Batch]],
    evaluate: Callable[[nn.Module], dict[str, float]],
    config: LoopConfig,
    accelerator: Accelerator,
    run: RunDirectory,
    tracker: Tracker,
    decorate: Decorate,
    *,
    metric: str = "val/loss",
    larger_is_better: bool = False,
    evaluation_in_steps: float = 1.0,
    early_batches: Callable[[int], list[Batch]] | None = None,
    flops_per_token: Callable[[float], float] | None = None,
    class_weights: Tensor | None = None,
    documents: Documents | None = None,
) -> dict[str, float]:
    """Train, evaluate, save, resume; leaves run.model and returns the evaluation of the weights in it.

    batches(step): this rank's micro-batches, a pure function of the step, each with "labels"; early_batches(step) takes
    its place until the learning rate begins to fall.
    flops_per_token(share): of a step in which this share of the positions has a label.
    documents(step, rank, early): names of the documents in each micro-batch of a rank.
    evaluate(model): metrics over the whole validation set, the same on every rank.
    Raises Interrupted after a signal and NonFiniteError after MAX_NON_FINITE bad steps in a row.
    """
    main = accelerator.is_main_process
    pace = Pace(run, config, evaluation_in_steps, accelerator)
    training = prepare(model, config, accelerator)
    if class_weights is not None:
        class_weights = class_weights.to(accelerator.device)
    state = _resume(run, training, tracker)
    pace.elapsed_before = state.elapsed
    dtype = DTYPES[resolve_precision(config.runtime.precision, accelerator.device)]
    ceiling = matmul_ceiling(accelerator.device, dtype) * accelerator.num_processes if flops_per_token else 0.0

    def save() -> None:
        state.elapsed = pace.elapsed
        tracker.sync()
        save_checkpoint(
            run.path, training.model, training.optimizer, accelerator, asdict(state), decorate, config.keep_last
        )

    def look() -> dict[str, float]:
        """Evaluate, record, and keep the weights when they are the best so far."""
        start = time.perf_counter()
        metrics = evaluate(training.model)
        pace.evaluation_took(time.perf_counter() - start)
        tracker.log(state.step, metrics)
        sign = 1 if larger_is_better else -1
        state.waited += 1
        if not state.best or sign * metrics[metric] > sign * state.best[metric]:
            state.best, state.best_step, state.waited = metrics, state.step, 0
            save_best(run.path, state.step, training.model, accelerator, decorate)
        say(f"step {state.step}: " + ", ".join(f"{name} {number:.4f}" for name, number in metrics.items()))
        return metrics

    def say(line: str) -> None:
        if main:
            progress.log(line)

    metrics: dict[str, float] = {}
    with StopRequest() as stop, Progress(pace.total, start=state.step, main_process=main) as progress:
        while state.step < pace.total:
            if pace.review(state.step):
                progress.set_total(pace.total)
            start = time.perf_counter()
            factor = pace.schedule.factor(state.step)
            seed_step(config.seed, state.step, accelerator.process_index)
            early = early_batches is not None and not pace.schedule.falling(state.step)
            micro_batches = early_batches(state.step) if early else batches(state.step)
            loss, norm = train_step(training, micro_batches, factor, config.optim.max_grad_norm, class_weights)
            seconds = time.perf_counter() - start
            state.step += 1
            pace.step_took(seconds)
            state.anomalies.check(state.step, loss, norm, early, training, tracker, documents, say)
            rate = training.learning_rates[0] * factor
            tokens = sum(_tokens(batch) for batch in micro_batches)
            speed = tokens * accelerator.num_processes / seconds
            mfu = 0.0
            if flops_per_token is not None:
                share = sum(batch["labels"].numel() for batch in micro_batches) / tokens
                mfu = speed * flops_per_token(share) / ceiling
            progress.update(state.step, loss=loss, lr=rate, tokens_per_second=speed, mfu=mfu)
            last = state.step == pace.total
            if last or state.step % config.log_every == 0:
                timing = {"tokens_per_second": speed, "mfu": mfu, "elapsed": pace.elapsed}
                tracker.log(state.step, {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm}, timing)
            if last or state.step % pace.evaluate_every == 0:
                metrics = look()
            stopped = _agree(stop.number, accelerator)
            if stopped or last or state.step % pace.save_every == 0:
                save()
            if stopped and not last:
                raise Interrupted(f"stopped at step {state.step}; saved. The same command goes on from there", stopped)
            if config.patience and state.waited >= config.patience:
                say(f"no better {metric} in {state.waited} evaluations: stopping early")
                save()
                break
    if config.keep == "best" or not metrics:
        metrics = state.best
    _export(config, training, run, state, decorate)
    return metrics


def _tokens(batch: Batch) -> int:
    """Positions computed, those of the encoder and of the decoder."""
    return sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)


def _resume(run: RunDirectory, training: Training, tracker: Tracker) -> Progressed:
    """Continue from the newest intact checkpoint, or start."""
    accelerator = training.accelerator
    found = latest_checkpoint(run.path, print) if accelerator.is_main_process else None
    found = broadcast(found, accelerator)
    if found is None:
        tracker.rewind(0)
        return Progressed()
    saved = load_checkpoint(found, training.model, training.optimizer, accelerator)
    state = Progressed(**{**saved, "anomalies": Anomalies(**saved.get("anomalies", {}))})
    tracker.rewind(state.step)
    if accelerator.is_main_process:
        print(f"{run.path}: going on from step {state.step}")
    return state


def _agree(number: int, accelerator: Accelerator) -> int:
    """The largest signal number seen by any rank."""
    if accelerator.num_processes == 1:
        return number
    flag = torch.tensor(number, device=accelerator.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return int(flag.item())


def _export(config: LoopConfig, training: Training, run: RunDirectory, state: Progressed, decorate: Decorate) -> None:
    """Write run.model from the best or the last weights."""
    accelerator = training.accelerator
    weights = gather_weights(training.model)
    if accelerator.is_main_process:
        if config.keep == "best":
            weights = load_model(run.path / "checkpoints" / f"best-{state.best_step:08d}").state_dict()
        export_model(run.model, unwrap(training.model), weights, decorate)
    accelerator.wait_for_everyone()
