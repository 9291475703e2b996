"""One pretraining run: tokenizer, token store or pairs, plan, training loop, scores."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console
from torch import nn

from mini_llm.engine.batch import IGNORE_INDEX, Batch, BatchSplit
from mini_llm.engine.config import build_config
from mini_llm.engine.device import DTYPES, default_device, resolve_precision
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.processes import make_accelerator, start_processes
from mini_llm.engine.evaluate import evaluate_loss
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.loop import train
from mini_llm.engine.replay import Replay
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.run.state import read_state
from mini_llm.engine.settings import HARMLESS
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.model import load_model
from mini_llm.tokenization.save import save_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer

from .batch_documents import make_documents
from .choices import WAY, read_choices, with_choices, write_choices
from .config import PretrainConfig
from .data import Data, data_fingerprint, make_model, make_objective, objective_name, prepare_data
from .objectives.causal import CausalObjective
from .plan.rehearsal import rehearse
from .plan.sizes import MakePlan, Plan, make_plan
from .plan.trial_steps import using_threads
from .resolved import resolved_config
from .samples import Samples, make_samples
from .shortcomings import shortcomings
from .warm_start.apply import Applied, apply_warm_start

RUNS = Path("runs")


def pretrain(config: PretrainConfig, runs: Path = RUNS) -> dict[str, float]:
    """Train to the end of the run in the folder `runs`, resuming it where it exists. Returns the final scores.

    Raises the errors of mini_llm/engine/errors.py.
    """
    processes = start_processes(config.runtime)
    main = processes.is_main_process
    console = Console(stderr=True, quiet=not main, soft_wrap=True)
    tree = config.model_dump(mode="json")
    with RunDirectory(runs / config.run_name, main_process=main) as run:
        for note in run.compare_config(tree, HARMLESS):
            console.print(note)
        if run.finished:
            console.print(run.describe_finished())
            return run.finished["scores"]
        tree = run.as_requested(tree, HARMLESS)
        choices = read_choices(run)
        config = with_choices(build_config(PretrainConfig, tree, str(run.path)), choices)
        run.record(tree, "pretrain")
        # The main process builds the tokenizer and token store; the other ranks then load them.
        with processes.main_process_first():
            data = prepare_data(config, processes, runs)
        make = _plan_maker(config, data, processes)
        if choices is None:
            device, say = default_device(config.runtime.device), partial(console.print, markup=False)
            plan, seconds = rehearse(config, make, processes.num_processes, device, say)
        else:
            plan, seconds = make(choices.speed), 0.0
        plan = broadcast(plan, processes)
        console.print(plan.table())
        if main:
            write_choices(run, config, plan)
        for note in _remarks(plan, data):
            console.print(note, markup=False)
        resolved = resolved_config(config, plan, data)
        run.resolve(resolved)
        start = data.source.directory if data.source else None
        with Tracker(run.path, config.tracking, "pretrain", resolved, main, start=start) as tracker:
            if isinstance(data.tokenizer, Tokenizer) and start is None:
                tracker.uses("tokenizer", "tokenizer", data.tokenizer.directory / "tokenizer.model")
            with using_threads(plan.threads):
                scores = _train(config, plan, data, processes, run, tracker, console, seconds)
            if main:
                if data.pairs is not None:
                    scores |= _score(config, plan, data, run, tracker, console)
                _record(plan, data, run, tracker, scores)
                run.finish(scores)
        console.print(f"{run.model}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        for line in shortcomings(run, scores["val/loss"], data):
            console.print(line, markup=False)
        return scores


def replay(path: Path, step: int, dump: Path | None) -> None:
    """Recompute `step` of the run at `path` and compare; see mini_llm/engine/replay.py. Raises ConfigError."""
    run = RunDirectory(path, main_process=False)
    choices = read_choices(run)
    config = with_choices(build_config(PretrainConfig, run.requested(), str(path)), choices)
    processes = start_processes(config.runtime)
    with processes.main_process_first():
        data = prepare_data(config, processes, path.parent)
    plan = broadcast(_plan_maker(config, data, processes)(choices.speed if choices else None), processes)
    quiet, loop = Console(quiet=True), Replay(step, data.tokenizer.decode, dump)
    with (
        Tracker(path, config.tracking, "pretrain", {}, main_process=False) as tracker,
        using_threads(plan.threads),
    ):
        _train(config, plan, data, processes, run, tracker, quiet, loop=loop)


def _plan_maker(config: PretrainConfig, data: Data, processes: PartialState) -> MakePlan:
    source = data.source.config if data.source else None
    tokens = len(data.stores["train"]) if data.stores else 0
    pairs = data.encoded["train"].lengths if data.encoded else None
    device = default_device(config.runtime.device)
    return partial(make_plan, config, source, data.tokenizer, tokens, pairs, processes.num_processes, device)


def _remarks(plan: Plan, data: Data) -> list[str]:
    """Notes for reading the losses: the baseline, and what was cut off."""
    if data.stores is not None:
        entropy = data.stores["train"].unigram_entropy()
        return [f"Baseline: {entropy:.3f} nats per token, the unigram entropy of the corpus."]
    sides = data.encoded["train"]
    cut = sum(len(ids) > plan.length for side in (sides.sources, sides.targets) for ids in side)
    notes = list(data.pairs.notes)
    return [*notes, f"{cut:,} texts are longer than {plan.length} tokens and are cut"] if cut else notes


def _train(
    config: PretrainConfig,
    plan: Plan,
    data: Data,
    processes: PartialState,
    run: RunDirectory,
    tracker: Tracker,
    console: Console,
    seconds_planned: float = 0.0,
    loop: Callable[..., dict[str, float]] = train,
) -> dict[str, float]:
    """`seconds_planned`: seconds of the budget that the plan has taken."""
    split = BatchSplit(plan.global_batch_size, plan.micro_batch_size, processes.num_processes, processes.process_index)
    runtime = config.runtime.model_copy(update={name: getattr(plan, name) for name in WAY})
    config = config.model_copy(update={"runtime": runtime, "max_steps": plan.max_steps})
    accelerator = make_accelerator(
        config.runtime, split.accumulation, split.micro_batch_size, config.optim.max_grad_norm
    )
    objective, held_out = make_objective(config, plan, data)

    held_out_labels = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in held_out)

    def shorten_evaluation(share: float) -> None:
        kept = max(1, round(share * len(held_out)))
        held_out[:] = [held_out[i * len(held_out) // kept] for i in range(kept)]

    def evaluate(model: nn.Module) -> dict[str, float]:
        sums = evaluate_loss(model, held_out, accelerator)
        metrics = {"val/loss": sums["loss"], "val/ppl": math.exp(min(sums["loss"], 700.0))}
        if data.shape == "causal":
            # Bits per byte compare across tokenizers; losses per token do not.
            read = data.stores["validation"].num_bytes * sums["count"] / held_out_labels
            metrics["val/bpb"] = sums["loss"] * sums["count"] / math.log(2) / read
        name = "val/masked_accuracy" if data.shape == "masked" else "val/accuracy"
        metrics[name] = sums["accuracy"]
        if "next_sentence_accuracy" in sums:
            metrics["val/next_sentence_accuracy"] = sums["next_sentence_accuracy"]
        return metrics

    early, first = None, None
    starts_anew = data.shape == "masked" and data.source is None
    if starts_anew and config.clm_warmup and not plan.config.next_sentence:
        # Next-token prediction has a label at every position, three times as many as masking; that helps short runs
        # most (Gisserot-Boukhlef et al. 2025, "Should We Still Pretrain Encoders with Masked Language Modeling?").
        first = CausalObjective(data.stores["train"], plan.length, config.seed, causal=True)
        early = partial(first.batches, split=split)

    torch.manual_seed(config.seed)
    start = time.monotonic()
    model = make_model(plan, data)
    if plan.warm_start.tokens:
        _start_warm(model, config, plan, data, run, console)
    if data.source is not None and model.newly_initialized:
        console.print(f"{data.source.directory}: newly initialised: {', '.join(model.newly_initialized)}", markup=False)
    if plan.compile:
        console.print("compiling the layers during the first step")
    return loop(
        model,
        lambda step: objective.batches(step, split),
        evaluate,
        config,
        accelerator,
        run,
        tracker,
        lambda directory: save_tokenizer(data.tokenizer, directory, data.shape, plan.config.max_position_embeddings),
        evaluation_in_steps=sum(batch["input_ids"].numel() for batch in held_out)
        / (plan.global_batch_size * plan.row.length),
        seconds_used=seconds_planned + time.monotonic() - start,
        shorten_evaluation=shorten_evaluation,
        clm_batches=early,
        flops_per_token=lambda head_share: flops_per_token(plan.config, plan.row.length, head_share),
        documents=make_documents(data, objective, first, split),
        samples=_samples(config, data, held_out),
        metadata={
            "tokenizer_sha256": data.tokenizer.sha256,
            "data_fingerprint": data_fingerprint(data, run.path),
            "global_batch_size": plan.global_batch_size,
        },
    )


def _samples(config: PretrainConfig, data: Data, held_out: list[Batch]) -> Samples | None:
    count = config.tracking.samples if data.shape == "causal" else 0
    return make_samples(count, held_out, data.tokenizer.decode) if count else None


def _start_warm(
    model: nn.Module, config: PretrainConfig, plan: Plan, data: Data, run: RunDirectory, console: Console
) -> None:
    """Apply the warm start; every launch of a run repeats what the first one had time for."""
    device = default_device(config.runtime.device)
    dtype = DTYPES[resolve_precision(config.runtime.precision, device)]
    # fp16 gradients would need a loss scale, which the fit to bigrams does not have.
    dtype = torch.float32 if dtype == torch.float16 else dtype
    path = run.path / "warm_start.json"
    earlier = read_state(path, Applied, aside=run.main_process)

    def say(line: str) -> None:
        console.print(line, markup=False)

    store = data.stores["train"]
    applied = apply_warm_start(model, store, plan.warm_start, device, dtype, say, config.budget_seconds, earlier)
    if run.main_process and earlier is None:
        write_json(path, applied.model_dump())


def _score(
    config: PretrainConfig, plan: Plan, data: Data, run: RunDirectory, tracker: Tracker, console: Console
) -> dict[str, float]:
    """BLEU and chrF of the saved model on the test pairs, or on the validation pairs when there are no test pairs."""
    from .translation_scores import score_pairs, score_table

    part, pairs = ("test", data.pairs.test) if data.pairs.test else ("val", data.pairs.validation)
    longest = min(plan.length, max(len(ids) for ids in data.encoded["train"].targets))
    device = default_device(config.runtime.device)
    figures, rows = score_pairs(run.model, data.tokenizer, pairs[: config.pairs.scored], longest, device)
    console.print(score_table(figures, f"{part}: {min(len(pairs), config.pairs.scored):,} pairs, greedy"))
    tracker.table("pairs", ["source", "target", "model"], rows)
    return {f"{part}/{name}": value for name, value in figures.items()}


def _record(plan: Plan, data: Data, run: RunDirectory, tracker: Tracker, scores: dict[str, float]) -> None:
    steps = max((row.get("step", 0) for row in read_rows(run.path / "metrics.jsonl")), default=0)
    facts = {
        "objective": objective_name(plan, data),
        "steps": steps,
        "tokens": steps * plan.global_batch_size * plan.row.text,
        "model_directory": str(run.model),
        "parameters": sum(parameter.numel() for parameter in load_model(run.model).parameters()),
    }
    about = {}
    if data.stores is not None:
        train, validation = data.stores["train"], data.stores["validation"]
        entropy = train.unigram_entropy()
        facts |= {
            "unigram_loss": entropy,
            "unigram_bpb": entropy * len(validation) / math.log(2) / validation.num_bytes,
            "train_tokens": len(train),
            "epochs": facts["tokens"] / max(1, len(train)),
            "validation_bytes": validation.num_bytes,
        }
        about = {"fingerprint": train.fingerprint, "tokens": len(train)}
        tracker.artifact(f"tokens-{train.fingerprint[:12]}", "dataset", train.path / "manifest.json", about)
    else:
        facts["train_pairs"] = len(data.pairs.train)
    tracker.table("plan", ["what", "value", "why"], [_done(list(row), steps) for row in plan.reasons])
    tracker.summary({**scores, **facts})
    tracker.artifact(run.path.name, "model", run.model, {**scores, **about})


def _done(row: list[str], steps: int) -> list[str]:
    """A row of the plan; the one of max_steps also says how many steps were done, which a time budget limits."""
    what, value, why = row
    if what == "max_steps" and value != f"{steps:,}":
        value = f"{steps:,} done, {value} at most"
    return [what, value, why]
