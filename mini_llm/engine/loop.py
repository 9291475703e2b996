"""The one training loop, for pretraining and fine-tuning alike: steps, evaluations, checkpoints, signals, resume."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from mini_llm.engine.batch import Batch
from mini_llm.engine.budget import Pace
from mini_llm.engine.checkpoint.export import export
from mini_llm.engine.checkpoint.format import Decorate
from mini_llm.engine.checkpoint.resume import resume
from mini_llm.engine.checkpoint.sharded_saver import make_saver
from mini_llm.engine.device import DTYPES, resolve_precision
from mini_llm.engine.distributed.collectives import agree
from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.distributed.watchdog import Watchdog, peers_may_die
from mini_llm.engine.flops import matmul_ceiling
from mini_llm.engine.preflight import check_space, out_of_memory_explained
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.run.progress import Progress
from mini_llm.engine.run.signals import Interrupted, StopRequest
from mini_llm.engine.run.tracker import Tracker
from mini_llm.engine.settings import LoopConfig
from mini_llm.engine.spikes import Documents
from mini_llm.engine.step import prepare, seed_step, train_step


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
    spent: float = 0.0,
    early_batches: Callable[[int], list[Batch]] | None = None,
    flops_per_token: Callable[[float], float] | None = None,
    class_weights: Tensor | None = None,
    facts: Mapping[str, Any] | None = None,
    documents: Documents | None = None,
) -> dict[str, float]:
    """Train, evaluate, save, resume; leaves run.model and returns the evaluation of the weights in it.

    batches(step): this rank's micro-batches, a pure function of the step, each with "labels"; early_batches(step) takes
    its place until the learning rate begins to fall.
    flops_per_token(share): of a step in which this share of the positions has a label.
    documents(step, rank, early): names of the documents in each micro-batch of a rank.
    spent: seconds of the budget that making the model took.
    evaluate(model): metrics over the whole validation set, the same on every rank.
    facts: for the manifest of checkpoints; those of BINDING must be the same when the run goes on.
    Raises Interrupted after a signal, NonFiniteError after MAX_NON_FINITE bad steps in a row, CheckpointError when the
    last save fails or no checkpoint is intact, ConfigError when memory or disk do not suffice.
    """
    main = accelerator.is_main_process
    pace = Pace(run, config, evaluation_in_steps, accelerator, spent)
    training = prepare(model, config, accelerator)
    if class_weights is not None:
        class_weights = class_weights.to(accelerator.device)
    precision = resolve_precision(config.runtime.precision, accelerator.device)
    launch = {"ranks": accelerator.num_processes, "zero_stage": zero_stage(config.runtime), "precision": precision}
    facts = {**launch, **(facts or {})}
    state = resume(run, training, tracker, facts)
    pace.resume(state.step, state.elapsed)
    ranks = accelerator.num_processes
    ceiling = matmul_ceiling(accelerator.device, DTYPES[precision]) * ranks if flops_per_token else 0.0

    def save() -> None:
        state.elapsed = pace.elapsed
        tracker.sync()
        saver.save(asdict(state))

    def look() -> dict[str, float]:
        """Evaluate, record, and keep the weights when they are the best so far."""
        start = time.perf_counter()
        fault_point("evaluate")
        metrics = evaluate(training.model)
        pace.evaluation_took(time.perf_counter() - start)
        tracker.log(state.step, metrics)
        sign = 1 if larger_is_better else -1
        state.waited += 1
        state.latest = metrics
        if not state.best or sign * metrics[metric] > sign * state.best[metric]:
            state.best, state.best_step, state.waited = metrics, state.step, 0
            saver.keep_best(state.step)
        say(f"step {state.step}: " + ", ".join(f"{name} {number:.4f}" for name, number in metrics.items()))
        return metrics

    def say(line: str) -> None:
        if main:
            progress.log(line)

    def patience_is_over() -> bool:
        return config.patience is not None and state.waited >= config.patience

    if main and state.step < pace.total and (warning := check_space(run.path, training, config.keep_last)):
        print(warning, file=sys.stderr)
    hang = config.runtime.hang_seconds
    with (
        peers_may_die(hang, accelerator),
        StopRequest() as stop,
        Watchdog(hang, accelerator) as watchdog,
        Progress(pace.known_total, start=state.step, main_process=main) as progress,
        make_saver(run.path, training, decorate, config, facts) as saver,
    ):
        while state.step < pace.total and not patience_is_over():
            if pace.review(state.step):
                progress.set_total(pace.total)
            start = time.perf_counter()
            factor = pace.schedule.factor(state.step)
            seed_step(config.seed, state.step, accelerator.process_index)
            early = early_batches is not None and not pace.schedule.falling(state.step)
            micro_batches = early_batches(state.step) if early else batches(state.step)
            fault_point("step")
            with out_of_memory_explained():
                loss, norm = train_step(training, micro_batches, factor, config.optim.max_grad_norm, class_weights)
            seconds = time.perf_counter() - start
            state.step += 1
            watchdog.beat(f"step {state.step}")
            pace.step_took(seconds)
            state.anomalies.check(state.step, loss, norm, early, training, tracker, documents, say)
            rate = training.learning_rates[0] * factor
            tokens = sum(_tokens(batch) for batch in micro_batches)
            speed = tokens * ranks / seconds
            mfu = 0.0
            if flops_per_token is not None:
                share = sum(batch["labels"].numel() for batch in micro_batches) / tokens
                mfu = speed * flops_per_token(share) / ceiling
            left = None if pace.known_total else pace.budget - pace.elapsed
            progress.update(state.step, loss=loss, lr=rate, tokens_per_second=speed, mfu=mfu, eta=left)
            last = state.step == pace.total
            if last or state.step % config.log_every == 0:
                timing = {"tokens_per_second": speed, "mfu": mfu, "elapsed": pace.elapsed}
                tracker.log(state.step, {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm}, timing)
            if last or state.step % pace.evaluate_every == 0:
                look()
                watchdog.beat(f"the evaluation of step {state.step}")
            stopped = agree(stop.number, accelerator)
            over = last or patience_is_over()
            if stopped or over or state.step % pace.save_every == 0:
                save()
                watchdog.beat(f"the checkpoint of step {state.step}")
            if stopped and not last:
                saver.finish()
                raise Interrupted(f"stopped at step {state.step}; saved. The same command goes on from there", stopped)
            if over and not last:
                say(f"no better {metric} in {state.waited} evaluations: stopping early")
        saver.finish()
        decorate = saver.decorate
    best = config.keep == "best" and state.best_step is not None
    with peers_may_die(hang, accelerator):
        export(training, run, state.best_step if best else None, decorate)
    return state.best if best else state.latest


def _tokens(batch: Batch) -> int:
    """Positions computed, those of the encoder and of the decoder."""
    return sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)
