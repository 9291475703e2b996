"""`python -m pretrain plan`: sizes, memory, disk and time of a run, and whether it fits, before any work is done."""

import os
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from mini_llm.corpus.shard_writer import token_dtype
from mini_llm.engine.device import DTYPES, default_device
from mini_llm.engine.distributed.processes import start_processes, zero_stage
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.flops import flops_per_token, matmul_ceiling

from .config import PretrainConfig
from .plan.activations import activation_bytes
from .plan.draft import Draft, draft_plan, estimate_tokens, is_cast, memory_setup
from .plan.fit import check_memory, process_bytes, size
from .plan.memory import predict_memory
from .plan.parameters import Parameters, count_parameters
from .plan.rehearsal import rehearse
from .plan.setup import MemorySetup
from .plan.sizes import MakePlan, Plan
from .plan.speed import expected_mfu
from .plan.trial_steps import run_trial_steps, using_threads

STAGES = (0, 1, 2, 3)
TRIAL_STEPS, TRIAL_SECONDS, TRIAL_ACCUMULATION = 4, 15.0, 4
COUNTS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
SIZES = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def show_plan(
    config: PretrainConfig, ranks: int | None, stage: int | None, per_rank: float | None, tokens: float | None
) -> None:
    """Print the plan of `config` as tables.

    per_rank: bytes of each rank's GPU, to plan for other machines; None plans for this one. tokens: size of the corpus;
    None estimates it. Raises ConfigError when the run does not fit.
    """
    device, ranks = default_device(config.runtime.device), ranks or int(os.environ.get("WORLD_SIZE", 1))
    stage = (zero_stage(config.runtime) or 0) if stage is None else stage
    console = Console(soft_wrap=True)
    rehearsed = None
    if per_rank is None and ranks == 1 and not stage:
        start_processes(config.runtime)
        say = partial(Console(stderr=True, soft_wrap=True).print, markup=False)

        def rehearsed(make: MakePlan) -> Plan:
            return rehearse(config, make, ranks, device, say)[0]

    draft = draft_plan(config, ranks, device, None if tokens is None else int(tokens), rehearsed)
    setup = memory_setup(config, draft.plan, ranks, stage, device)
    if per_rank is not None:
        setup = replace(setup, device="cuda", muon_itemsize=2)
    parameters = count_parameters(draft.plan.config)
    console.print(draft.plan.table())
    console.print(_memory_table(config, draft.plan, setup, parameters))
    check_memory(draft.plan.config, setup, per_rank)
    console.print(_run_table(config, draft, setup, parameters, device, measure=per_rank is None))
    for note in draft.notes:
        console.print(note, markup=False)


def check_fits(config: PretrainConfig) -> None:
    """Raise ConfigError when a run of `config` cannot fit into this machine's memory. Measures and reads nothing."""
    if config.pairs is not None:
        # The lengths of pairs are unknown until they are read.
        return
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    device = default_device(config.runtime.device)
    # Sizes chosen for a budget never fill a machine, and choosing them takes a measurement.
    without_budget = config.model_copy(update={"budget": None})
    plan = draft_plan(without_budget, ranks, device, estimate_tokens(config) or 1).plan
    check_memory(plan.config, memory_setup(config, plan, ranks, zero_stage(config.runtime) or 0, device))


def parse_count(text: str | None, flag: str) -> float | None:
    """Parse a number with an optional K, M, B (also G) or T: 300M, 10B, 1e9. Raises ConfigError."""
    if text is None:
        return None
    number, unit = _number_and_unit(text)
    if number * COUNTS.get(unit, 0) < 1:
        raise ConfigError(f"invalid {flag} '{text}': use a number such as 300M, 10B or 1e9")
    return number * COUNTS[unit]


def parse_size(text: str | None, flag: str) -> float | None:
    """Parse bytes: 80GB (10**9 bytes each), 80GiB (2**30), 80G. Raises ConfigError, also for a number without unit."""
    if text is None:
        return None
    number, unit = _number_and_unit(text)
    if number > 0 and not unit:
        raise ConfigError(
            f"{flag} {text} has no unit: write {flag} {text}GB, or {flag} {text}GiB for units of 2**30 bytes"
        )
    size = number * SIZES.get(unit.removesuffix("B"), 0)
    if size < 1:
        raise ConfigError(f"invalid {flag} '{text}': use a number with a unit, such as 80GB, 40GiB or 512MB")
    return size


def _number_and_unit(text: str) -> tuple[float, str]:
    """The number at the start of `text` and the capital letters behind it; 0 without a number."""
    match = re.fullmatch(r"((?:\d[\d_,]*\.?\d*|\.\d+)(?:E[+-]?\d+)?) *([KMGBTI]*)", text.strip().upper())
    return (float(re.sub("[_,]", "", match[1])), match[2]) if match else (0.0, "")


def _memory_table(config: PretrainConfig, plan: Plan, setup: MemorySetup, parameters: Parameters) -> Table:
    """Memory by part for each ZeRO stage; a star marks the chosen stage."""
    process = "rank" if setup.ranks > 1 else "process"
    optimizer = "Muon and AdamW" if setup.muon else "AdamW"
    title = f"Memory of each {process}: {setup.ranks} x {setup.precision}, {optimizer}, "
    table = Table(title=title + f"micro-batches of {setup.rows} x {setup.length}", title_justify="left")
    table.add_column("part")
    for stage in STAGES:
        name = f"ZeRO {stage}" if stage else "no ZeRO"
        table.add_column(f"{name} *" if stage == setup.stage else name, justify="right")
    cast = is_cast(config, setup.precision)
    setups = [replace(setup, stage=stage, cast=stage > 0 and cast) for stage in STAGES]
    other = 0 if setup.checkpoint_every else 1
    others = [replace(trial, checkpoint_every=other) for trial in setups]
    with_other = f"  with{'' if other else 'out'} gradient checkpointing"

    found = [predict_memory(plan.config, trial, process_bytes(trial), parameters) for trial in setups]
    for part in found[0].parts:
        if any(memory.parts[part] for memory in found):
            table.add_row(part, *(size(memory.parts[part]) for memory in found))
        if part == "activations":
            table.add_row(with_other, *(size(activation_bytes(plan.config, trial)) for trial in others), style="dim")
    table.add_section()
    table.add_row("allocated at most", *(size(memory.tensors) for memory in found))
    table.add_row("  peak in", *(memory.peak_moment for memory in found), style="dim")
    table.add_row("[bold]peak[/bold]", *(size(memory.peak) for memory in found))
    peaks = [predict_memory(plan.config, trial, process_bytes(trial), parameters).peak for trial in others]
    table.add_row(with_other, *map(size, peaks), style="dim")
    return table


def _run_table(
    config: PretrainConfig,
    draft: Draft,
    setup: MemorySetup,
    parameters: Parameters,
    device: torch.device,
    measure: bool,
) -> Table:
    """Parameters, FLOPs and disk; with `measure` also the time, at the speed of a few trial steps."""
    plan = draft.plan
    per_token = flops_per_token(plan.config, plan.row.length, plan.row.label_share)
    tokens_per_step = plan.global_batch_size * plan.row.tokens
    tokens = plan.max_steps * tokens_per_step
    table = Table(title="The run", title_justify="left")
    for column in ("what", "value", "how"):
        table.add_column(column)
    tables = parameters.total - parameters.hidden - parameters.vectors
    parts = f"matrices {parameters.hidden:,}, embeddings and head {tables:,}, vectors {parameters.vectors:,}"
    table.add_row("parameters", f"{parameters.total:,}", parts)
    table.add_row("FLOPs per token", f"{per_token:,.0f}", "6 per matrix weight, and attention")
    table.add_row("tokens", f"{tokens:,}", f"{plan.max_steps:,} steps of {tokens_per_step:,}")
    table.add_row("FLOPs", f"{tokens * per_token:.3g}", "")
    if measure:
        speed, how = _speed(config, plan, setup, per_token, device)
        seconds = tokens / speed
        table.add_row("tokens per second", f"{speed:,.0f}", how)
        table.add_row("time", _duration(seconds), "for these tokens, without evaluation and saving")
        if config.budget_seconds and seconds > config.budget_seconds:
            reached = int(speed * config.budget_seconds)
            table.add_row("", config.budget, f"the budget, which ends the run after about {reached:,} tokens")
    adam = parameters.total - (parameters.hidden if setup.muon else 0)
    weights = 4 * parameters.total
    checkpoint = 2 * weights + 4 * adam
    most = (config.keep_last + 1) * checkpoint + 3 * weights
    table.add_row("a checkpoint", size(checkpoint), "weights and optimizer state in fp32")
    free = shutil.disk_usage(Path.cwd()).free
    table.add_row("run directory", size(most), f"at most, while a checkpoint is written; {size(free)} are free")
    width = token_dtype(plan.config.vocab_size).itemsize
    table.add_row("token store", size(draft.tokens * width), f"{draft.tokens:,} tokens of {width} bytes")
    return table


def _speed(
    config: PretrainConfig, plan: Plan, setup: MemorySetup, per_token: float, device: torch.device
) -> tuple[float, str]:
    """(tokens per second of all ranks, where the figure comes from)."""
    # Ranks on one CPU share it.
    ranks = setup.ranks if device.type == "cuda" else 1
    ceiling = matmul_ceiling(device, DTYPES[setup.precision])
    peak = f"{ceiling / 1e9:,.0f} GFLOP/s"
    micro_batch = setup.rows * plan.row.tokens
    mfu = expected_mfu(device)
    expected = micro_batch * per_token / (mfu * ceiling)
    if expected > TRIAL_SECONDS:
        how = f"estimated: {mfu:.0%} of {peak}; one micro-batch would take {_duration(expected)}"
        return ranks * mfu * ceiling / per_token, how
    runtime = config.runtime.model_copy(update={"zero_stage": None, "deepspeed": None})
    alone = config.model_copy(update={"runtime": runtime})
    trial = replace(setup, ranks=1, stage=0, cast=False, accumulation=min(setup.accumulation, TRIAL_ACCUMULATION))
    start_processes(alone.runtime)
    with using_threads(plan.threads):
        first, *others = run_trial_steps(alone, plan.config, trial, TRIAL_STEPS, TRIAL_SECONDS)
    seconds = others or [first]
    speed = micro_batch * trial.accumulation / median(seconds)
    how = f"measured here in {len(seconds)} steps of {trial.accumulation} micro-batches; "
    how += f"{speed * per_token / ceiling:.0%} of {peak}"
    if setup.ranks > 1:
        how += ", one process" + (f" x {ranks}" if ranks > 1 else "; ranks on one CPU share it") + ", no communication"
    return ranks * speed, how


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
