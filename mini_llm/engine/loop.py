"""The training loop, shared by pretraining and fine-tuning: steps, evaluations, checkpoints, signals, resume."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from mini_llm.engine.batch import StepBatches
from mini_llm.engine.budget import StepBudget
from mini_llm.engine.checkpoint.export import export
from mini_llm.engine.checkpoint.format import SaveExtras
from mini_llm.engine.checkpoint.resume import resume
from mini_llm.engine.checkpoint.sharded_saver import make_saver
from mini_llm.engine.device import DTYPES, resolve_precision
from mini_llm.engine.distributed.collectives import agree
from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.distributed.watchdog import Watchdog, peers_may_die
from mini_llm.engine.flops import Throughput
from mini_llm.engine.loss import Objective
from mini_llm.engine.preflight import check_space, out_of_memory_explained
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.fault_points import fault_point
from mini_llm.engine.run.progress import Progress
from mini_llm.engine.run.signals import Interrupted, StopRequest
from mini_llm.engine.settings import LoopConfig
from mini_llm.engine.spikes import Documents
from mini_llm.engine.step import prepare, seed_step, train_step
from mini_llm.engine.tracking.layer_norms import LayerNorms
from mini_llm.engine.tracking.tracker import Tracker


def train(
    model: nn.Module,
    batches: StepBatches,
    evaluate: Callable[[nn.Module], dict[str, float]],
    config: LoopConfig,
    accelerator: Accelerator,
    run: RunDirectory,
    tracker: Tracker,
    save_extras: SaveExtras,
    *,
    metric: str = "val/loss",
    larger_is_better: bool = False,
    evaluation_in_steps: float = 1.0,
    seconds_used: float = 0.0,
    shorten_evaluation: Callable[[float], None] | None = None,
    clm_batches: StepBatches | None = None,
    flops_per_token: Callable[[float], float] | None = None,
    class_weights: Tensor | None = None,
    objective: Objective | None = None,
    metadata: Mapping[str, Any] | None = None,
    documents: Documents | None = None,
    samples: Callable[[nn.Module], tuple[list[str], list[list[Any]]]] | None = None,
) -> dict[str, float]:
    """Train, evaluate, save, resume; write run.model and return the metrics of the weights in it.

    batches(step): this rank's micro-batches, each with "labels", as a pure function of the step.
    evaluate(model): metrics over the whole validation set, equal on every rank; `metric` selects the best weights.
    save_extras(directory): writes the tokenizer and other files into a model directory.
    evaluation_in_steps: tokens of one evaluation divided by those of one training step.
    seconds_used: seconds of the budget that building the model took.
    shorten_evaluation(share): called before the first evaluation when the budget leaves time for only this share of the
    validation set. Without it, evaluations read all of it.
    clm_batches(step): replaces `batches` until the learning rate begins to fall (CLM warm-up of a masked LM).
    flops_per_token(share): FLOPs per token of a step when this share of the tokens has a label, for the MFU.
    objective: the training loss; None: cross-entropy, with `class_weights`.
    metadata: for the manifest of checkpoints; the keys of resume.MUST_MATCH must stay the same when the run resumes.
    documents(step, rank, clm): names of the documents in a rank's batch, for reports of loss spikes.
    samples(model): columns and rows of a table that every evaluation adds to, called on every rank.

    Raises Interrupted after a signal, NonFiniteError after MAX_NON_FINITE bad steps in a row, CheckpointError when the
    last save fails or no checkpoint is intact, ConfigError when memory or disk space do not suffice.
    """
    main, ranks, hang = accelerator.is_main_process, accelerator.num_processes, config.runtime.hang_seconds
    precision = resolve_precision(config.runtime.precision, accelerator.device)
    launch = {"ranks": ranks, "zero_stage": zero_stage(config.runtime), "precision": precision}
    metadata = {**launch, **(metadata or {})}
    can_shorten = shorten_evaluation is not None
    budget = StepBudget(run, config, evaluation_in_steps, accelerator, seconds_used, can_shorten)
    context = prepare(model, config, accelerator)
    context.objective = objective
    class_weights = class_weights.to(accelerator.device) if class_weights is not None else None
    state = resume(run, context, tracker, metadata)
    budget.resume(state.step, state.elapsed)
    layers = LayerNorms(context, tracker)
    throughput = Throughput(flops_per_token, accelerator.device, DTYPES[precision], ranks)
    if main and state.step < budget.total and (warning := check_space(run.path, context, config.keep_last)):
        print(warning, file=sys.stderr)

    def log(line: str) -> None:
        if main:
            progress.log(line)

    def evaluate_and_log() -> None:
        """Evaluate, log the metrics, and keep the weights if they are the best so far."""
        nonlocal shorten_evaluation
        if shorten_evaluation is not None and (share := budget.share_to_evaluate()) < 1:
            log(f"evaluations read {share:.0%} of the validation set: more would not fit into the budget")
            shorten_evaluation(share)
            shorten_evaluation = None
        start = time.perf_counter()
        fault_point("evaluate")
        metrics = evaluate(context.model)
        budget.evaluation_took(time.perf_counter() - start)
        state.evaluated_at = state.step
        tracker.log(state.step, metrics)
        if state.record(metrics, metric, larger_is_better):
            saver.keep_best(state.step)
            tracker.best(state.step, metrics)
        if samples is not None:
            tracker.samples(state.step, *samples(context.model))
        log(f"step {state.step}: " + ", ".join(f"{name} {number:.4f}" for name, number in metrics.items()))
        watchdog.beat(f"the evaluation of step {state.step}")

    def save() -> None:
        state.elapsed, start = budget.elapsed, time.perf_counter()
        tracker.sync()
        saver.save(asdict(state))
        budget.saving_took(time.perf_counter() - start)
        watchdog.beat(f"the checkpoint of step {state.step}")

    def out_of_patience() -> bool:
        return budget.out_of_patience(state.waited, state.step - (state.best_step or 0))

    with (
        peers_may_die(hang, accelerator),
        StopRequest() as stop,
        Watchdog(hang, accelerator) as watchdog,
        Progress(budget.known_total, start=state.step, main_process=main) as progress,
        make_saver(run.path, context, save_extras, config, metadata) as saver,
    ):
        while state.step < budget.total and not out_of_patience():
            start = time.perf_counter()
            factor = budget.schedule.factor(state.step)
            seed_step(config.seed, state.step, accelerator.process_index)
            warmup_batches = None if budget.schedule.falling(state.step) else clm_batches
            micro_batches = (warmup_batches or batches)(state.step)
            fault_point("step")
            layers.begin(state.step + 1)
            with out_of_memory_explained():
                loss, norm = train_step(context, micro_batches, factor, config.optim.max_grad_norm, class_weights)
            seconds = time.perf_counter() - start
            state.step += 1
            watchdog.beat(f"step {state.step}")
            budget.step_took(seconds)
            layers.record(state.step, norm)
            if budget.review(state.step):
                progress.set_total(budget.total)
            clm = warmup_batches is not None
            state.spikes.check(state.step, loss, norm, clm, context, tracker, documents, log)

            lr = context.learning_rates[0] * factor
            speed, mfu = throughput.measure(micro_batches, seconds)
            progress.update(state.step, loss=loss, lr=lr, tokens_per_second=speed, mfu=mfu, eta=budget.seconds_left)
            last = state.step == budget.total
            if last or state.step % config.log_every == 0:
                timing = {"tokens_per_second": speed, "mfu": mfu, "elapsed": budget.elapsed}
                metrics = {"train/loss": loss, "train/lr": lr, "train/grad_norm": norm}
                # Marked, because the loss jumps where the objective changes.
                tracker.log(state.step, {**metrics, "train/clm": True} if clm else metrics, timing)
            if last or budget.evaluation_due(state.step, state.evaluated_at):
                evaluate_and_log()
            signal = agree(stop.number, accelerator)
            over = last or out_of_patience()
            if signal or over or state.step % budget.save_every == 0:
                save()
            if signal and not last:
                saver.finish()
                raise Interrupted(f"stopped at step {state.step}; saved. Run the same command again to resume", signal)
            if over and not last:
                log(f"no better {metric} in {state.waited} evaluations: stopping early")
        saver.finish()

    intervals = {"evaluate_every": budget.evaluate_every, "save_every": budget.save_every}
    run.resolve(intervals)
    tracker.config(intervals)
    best_step = state.best_step if config.load_best else None
    if state.best_step is not None:
        tracker.summary({"best": {"step": state.best_step, **state.best}})
    tracker.has_best_weights = state.best_step == (state.step if best_step is None else best_step)
    with peers_may_die(hang, accelerator):
        export(context, run, best_step, saver.save_extras)
    return state.latest if best_step is None else state.best
