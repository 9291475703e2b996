"""One pretraining run: tokenizer, token store, plan, loop, scores."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from torch import nn

from corpus.store import TokenStore, build_store
from engine.errors import ConfigError, DataError
from engine.evaluate import evaluate_loss
from engine.flops import flops_per_token
from engine.loop import HARMLESS, train
from engine.pace import broadcast
from engine.run_directory import RunDirectory
from engine.runtime import Share, default_device, make_accelerator, start_processes
from engine.tracking import Tracker
from model import HEADS, load_model
from pretrain.config import PretrainConfig
from pretrain.objectives import CausalObjective, MaskedObjective
from pretrain.plan import Plan, expected_width, make_plan
from tokenizer import load_tokenizer
from tokenizer.config import TokenizerConfig
from tokenizer.export import save_tokenizer
from tokenizer.train import train_tokenizer

RUNS = Path("runs")


def pretrain(config: PretrainConfig) -> dict[str, float]:
    """Run `config` to its end, or go on with it; returns the final scores. Raises the errors of engine/errors.py."""
    processes = start_processes(config.runtime)
    main = processes.is_main_process
    console = Console(stderr=True, quiet=not main, soft_wrap=True)
    tree = config.model_dump(mode="json")
    with RunDirectory(RUNS / config.run_name, main_process=main) as run:
        for note in run.compare_config(tree, HARMLESS):
            console.print(note)
        if run.finished:
            console.print(run.describe_finished())
            return run.finished["scores"]
        run.record(tree)
        # The other ranks find the tokenizer and the token store finished.
        with processes.main_process_first():
            tokenizer, stores = prepare_data(config, processes)
        plan = make_plan(
            config, stores["train"], tokenizer, processes.num_processes, default_device(config.runtime.device)
        )
        plan = broadcast(plan, processes)
        console.print(plan.table())
        entropy = stores["train"].unigram_entropy()
        console.print(f"The line to beat: {entropy:.3f} nats per token, the unigram entropy of the corpus.")
        with Tracker(run.path, config.tracking, "pretrain", tree, main) as tracker:
            scores = _train(config, plan, processes, run, tracker, tokenizer, stores)
            if main:
                _record(config, plan, run, tracker, stores, entropy, scores)
                run.finish(scores)
        console.print(f"{run.model}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        return scores


def prepare_data(config: PretrainConfig, processes: PartialState) -> tuple[Any, dict[str, TokenStore]]:
    """The tokenizer (trained on the corpus unless one is given) and the token stores, reused where they are current."""
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        settings = TokenizerConfig(
            corpus=config.corpus,
            vocab_size=config.vocab_size,
            hidden_size=expected_width(config, processes.num_processes, default_device(config.runtime.device)),
            tracking=config.tracking,
        )
        say = None if processes.is_main_process else lambda line: None
        tokenizer = train_tokenizer(settings, RUNS / settings.directory.name, say)
    if config.model == "mlm" and tokenizer.mask_id is None:
        raise ConfigError(f"{tokenizer.directory}: this tokenizer has no mask token, which model=mlm needs")
    return tokenizer, build_store(config.corpus, tokenizer, RUNS / "tokens")


def _train(
    config: PretrainConfig,
    plan: Plan,
    processes: PartialState,
    run: RunDirectory,
    tracker: Tracker,
    tokenizer: Any,
    stores: dict[str, TokenStore],
) -> dict[str, float]:
    share = Share(plan.global_batch_size, plan.micro_batch_size, processes.num_processes, processes.process_index)
    accelerator = make_accelerator(
        config.runtime, share.accumulation, share.micro_batch_size, config.optim.max_grad_norm
    )
    # Two forward passes of this size need no more memory than one with its gradients.
    rows = 2 * plan.micro_batch_size
    if config.model == "gpt":
        objective = CausalObjective(stores["train"], plan.length, config.seed)
        held_out = objective.evaluation(stores["validation"], plan.length, rows)
    else:
        objective = MaskedObjective(stores["train"], plan.length, config.seed, tokenizer, config.mlm_probability)
        held_out = objective.evaluation(stores["validation"], rows)
    if not held_out:
        raise DataError("the validation text is shorter than one window; raise corpus.validation_fraction")

    def evaluate(model: nn.Module) -> dict[str, float]:
        sums = evaluate_loss(model, held_out, accelerator)
        metrics = {"val/loss": sums["loss"], "val/ppl": math.exp(min(sums["loss"], 700.0))}
        if config.model == "gpt":
            # Tokenizers differ in what a token is; bytes are the same for all.
            metrics["val/bpb"] = sums["loss"] * sums["count"] / math.log(2) / stores["validation"].num_bytes
        name = "val/accuracy" if config.model == "gpt" else "val/masked_accuracy"
        return metrics | {name: sums["accuracy"]}

    early = None
    if config.model == "mlm" and config.causal_start:
        # Every token is a label there, three times as many as masked ones; with few tokens seen, that decides
        # (Gisserot-Boukhlef et al. 2025, "Should We Still Pretrain Encoders with Masked Language Modeling?").
        first = CausalObjective(stores["train"], plan.length, config.seed, causal=True)
        early = partial(first.batches, share=share)

    kind = "causal" if config.model == "gpt" else "masked"
    torch.manual_seed(config.seed)
    return train(
        HEADS[kind](plan.config),
        lambda step: objective.batches(step, share),
        evaluate,
        config.model_copy(update={"max_steps": plan.max_steps}),
        accelerator,
        run,
        tracker,
        lambda directory: save_tokenizer(tokenizer, directory, kind, plan.config.max_position_embeddings),
        evaluation_in_steps=sum(batch["input_ids"].numel() for batch in held_out)
        / (plan.global_batch_size * plan.length),
        early_batches=early,
        flops_per_token=lambda share: flops_per_token(plan.config, plan.length, share),
    )


def _record(
    config: PretrainConfig,
    plan: Plan,
    run: RunDirectory,
    tracker: Tracker,
    stores: dict[str, TokenStore],
    entropy: float,
    scores: dict[str, float],
) -> None:
    validation = stores["validation"]
    facts = {
        "objective": "causal" if config.model == "gpt" else "masked",
        "model_directory": str(run.model),
        "parameters": sum(parameter.numel() for parameter in load_model(run.model).parameters()),
        "unigram_loss": entropy,
        "unigram_bpb": entropy * len(validation) / math.log(2) / validation.num_bytes,
        "train_tokens": len(stores["train"]),
        "validation_bytes": validation.num_bytes,
    }
    tracker.table("plan", ["what", "value", "why"], [list(row) for row in plan.reasons])
    tracker.summary({**scores, **facts})
    data = {"fingerprint": stores["train"].fingerprint, "tokens": len(stores["train"])}
    tracker.artifact(
        f"tokens-{stores['train'].fingerprint[:12]}", "dataset", stores["train"].path / "manifest.json", data
    )
    tracker.artifact(run.path.name, "model", run.model, {**scores, **data})
