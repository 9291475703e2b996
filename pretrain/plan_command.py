"""`python -m pretrain plan`: what a run would be and need, and whether it fits, before anything is read or trained."""

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from mini_llm.corpus.config import STDLIB
from mini_llm.corpus.fingerprint import source_bytes
from mini_llm.corpus.shard_writer import token_dtype
from mini_llm.corpus.stdlib import iter_stdlib_files
from mini_llm.engine.device import DTYPES, default_device, resolve_precision
from mini_llm.engine.distributed.deepspeed_config import deepspeed_file, read_deepspeed
from mini_llm.engine.distributed.processes import start_processes, zero_stage
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.flops import flops_per_token, matmul_ceiling
from mini_llm.engine.kernels.load import has_kernels
from mini_llm.engine.muon import orthogonalize_dtype
from mini_llm.tokenization.config import TokenizerConfig, default_vocab_size
from mini_llm.tokenization.load import is_complete, load_tokenizer

from .config import PretrainConfig
from .data import find_source, tokenizer_name
from .objectives.lengths import PairLengths
from .objectives.spans import SENTINELS
from .plan.memory import STAGES, Memory, Setup, activations, fit, memory, size
from .plan.parameters import Parameters, count_parameters
from .plan.sizes import LONGEST_PAIR, Plan, expected_mfu, expected_width, make_plan
from .plan.trial_steps import rehearse
from .presets import read_preset, shape_of

# Of English text and source code with the vocabularies of mini_llm/tokenization/config.py; the real number is known when encoded.
BYTES_PER_TOKEN = 3
MEASURED_STEPS, MEASURED_SECONDS, MEASURED_ACCUMULATION = 4, 15.0, 4
COUNTS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
# What the first step loads (some 25 MB) and room for what the heap does not give back, and the context of a GPU.
FIRST_STEP_BYTES, CONTEXT_BYTES = 95e6, 600e6
# What DeepSpeed adds, by stage; benchmarks/memory.py.
DEEPSPEED_BYTES = {0: 0.0, 1: 150e6, 2: 150e6, 3: 300e6}


@dataclass
class DraftTokenizer:
    """Stands for a tokenizer that is not trained yet."""

    vocab_size: int
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 3
    cls_id: int = 5
    sep_id: int = 6


@dataclass
class Draft:
    """A plan made without data, and what it was told instead."""

    plan: Plan
    tokens: int
    notes: list[str]


def show_plan(
    config: PretrainConfig, ranks: int | None, stage: int | None, per_rank: float | None, tokens: float | None
) -> None:
    """Print the plan of `config` as tables; `per_rank`: memory of each rank in bytes, on machines other than this one.

    Raises ConfigError when it does not fit.
    """
    device, ranks = default_device(config.runtime.device), ranks or int(os.environ.get("WORLD_SIZE", 1))
    stage = (zero_stage(config.runtime) or 0) if stage is None else stage
    console = Console(soft_wrap=True)
    draft = draft_plan(config, ranks, device, None if tokens is None else int(tokens))
    setup = setup_of(config, draft.plan, ranks, stage, device)
    if per_rank is not None:
        setup = replace(setup, device="cuda", iterate=2)
    parameters = count_parameters(draft.plan.config)
    console.print(draft.plan.table())
    console.print(_memory_table(config, draft.plan, setup, parameters))
    check(draft.plan, setup, per_rank)
    console.print(_run_table(config, draft, setup, parameters, device, per_rank is None))
    for note in draft.notes:
        console.print(note, markup=False)


def parse_count(text: str | None, flag: str) -> float | None:
    """A number with an optional K, M, G, B or T and an optional unit: 80GB, 300M, 10B. Raises ConfigError."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9.]+) *([KMGBT]?)B?", text.strip().upper())
    try:
        number = float(match[1]) * COUNTS[match[2]] if match else 0.0
    except ValueError:
        number = 0.0
    if number < 1:
        raise ConfigError(f"{flag} {text}: write a number such as 80GB, 300M or 10B")
    return number


def check_fits(config: PretrainConfig) -> None:
    """Raises ConfigError when a run of `config` cannot fit into this machine's memory; measures and encodes nothing."""
    if config.pairs is not None:
        # Their lengths are known when they are read.
        return
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    device = default_device(config.runtime.device)
    # What the budget decides never fills a machine; finding it out takes a measurement.
    draft = draft_plan(config.model_copy(update={"budget": None}), ranks, device, _corpus_tokens(config) or 1)
    check(draft.plan, setup_of(config, draft.plan, ranks, zero_stage(config.runtime) or 0, device), None)


def check(plan: Plan, setup: Setup, per_rank: float | None) -> Memory:
    """The memory of one rank. Raises ConfigError when it is more than there is."""
    process = process_bytes(setup)
    if per_rank is not None:
        return fit(plan.config, setup, per_rank, process, 1, "a rank")
    limit, origin = machine_memory(setup.device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", setup.ranks)) if setup.device == "cpu" else 1
    return fit(plan.config, setup, limit, process, here, origin)


def machine_memory(device: str) -> tuple[float, str]:
    """Bytes that all processes here share on a CPU, or of one GPU; and what to call it."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory), "the GPU"
    total = float(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, float(text))
    return total, "this machine"


def process_bytes(setup: Setup) -> float:
    """What a process holds before there is a model."""
    if setup.device == "cuda":
        return CONTEXT_BYTES
    return psutil.Process().memory_info().rss + FIRST_STEP_BYTES + DEEPSPEED_BYTES[setup.stage]


def draft_plan(config: PretrainConfig, ranks: int, device: torch.device, tokens: int | None) -> Draft:
    """The plan that the run would make, with the size of the corpus and the vocabulary estimated where they must be."""
    notes: list[str] = []
    source = find_source(config.init).config if config.init else None
    if tokens is None:
        tokens = _corpus_tokens(config)
        if tokens is None:
            raise ConfigError("the size of this corpus is not known before it is read; give --tokens N")
        notes.append(f"Tokens of the corpus: about {tokens:,}, {BYTES_PER_TOKEN} bytes each; --tokens N sets it.")
    tokenizer = _tokenizer(config, tokens, ranks, device, notes)
    pairs = None
    if config.pairs is not None:
        longest = config.sizes.max_position_embeddings or LONGEST_PAIR
        pairs = PairLengths(
            count=max(1, tokens // (2 * longest)), longest=longest, mean_source=longest, mean_target=longest
        )
        notes.append("Pairs: as if every text were as long as the model reads.")
    plan = make_plan(config, source, tokenizer, tokens, pairs, ranks, device)
    return Draft(plan, tokens, notes)


def _tokenizer(config: PretrainConfig, tokens: int, ranks: int, device: torch.device, notes: list[str]) -> Any:
    if config.init:
        return load_tokenizer(find_source(config.init).directory)
    if config.tokenizer:
        return load_tokenizer(config.tokenizer)
    seq2seq = shape_of(**read_preset(config.model)) == "seq2seq"
    corpus = config.pairs.corpus(config.corpus) if config.pairs else config.corpus
    settings = TokenizerConfig(corpus=corpus, sentinels=SENTINELS if seq2seq else None)
    directory = settings.directory.with_name(tokenizer_name(config, settings))
    if config.vocab_size is None and is_complete(directory):
        return load_tokenizer(directory)
    vocabulary = config.vocab_size
    if vocabulary is None:
        vocabulary = default_vocab_size(tokens * BYTES_PER_TOKEN, expected_width(config, ranks, device))
        vocabulary += SENTINELS if seq2seq else 0
        notes.append(f"No tokenizer yet: it will have about {vocabulary:,} pieces, by rule.")
    return DraftTokenizer(vocabulary)


def _corpus_tokens(config: PretrainConfig) -> int | None:
    """From the sizes of the files; None for a data set of the Hub. Raises DataError for a file that is not there."""
    corpus = config.pairs.corpus(config.corpus) if config.pairs else config.corpus
    found = sum(len(text) for _, text in iter_stdlib_files()) if any(s.path == STDLIB for s in corpus.sources) else 0
    files = [source for source in corpus.sources if source.path != STDLIB]
    if files:
        named = source_bytes(corpus.model_copy(update={"sources": files, "validation": []}))
        if named is None:
            return None
        found += named
    return max(1, found // BYTES_PER_TOKEN)


def setup_of(config: PretrainConfig, plan: Plan, ranks: int, stage: int, device: torch.device) -> Setup:
    """What the memory of this run depends on."""
    model, rows = plan.config, plan.micro_batch_size
    precision = resolve_precision(config.runtime.precision, device)
    length, target, labels = plan.length, 0, plan.length
    if model.is_encoder_decoder:
        target = labels = max(1, round(plan.rows.tokens * plan.rows.label_share))
        length = max(1, plan.rows.tokens - target)
    elif not model.causal and (not config.causal_start or config.init or model.next_sentence):
        labels = max(1, round(config.mlm_probability * length))
    return Setup(
        rows=rows,
        length=length,
        labels=labels,
        target_length=target,
        accumulation=max(1, plan.global_batch_size // (rows * ranks)),
        ranks=ranks,
        stage=stage,
        precision=precision,
        checkpoint_every=config.runtime.gradient_checkpointing,
        cast=stage > 0 and _casts(config, precision),
        muon=config.optim.name != "adamw",
        padded=config.pairs is not None,
        device=device.type,
        kernels=has_kernels(device),
        iterate=orthogonalize_dtype(device, precision).itemsize,
    )


def _casts(config: PretrainConfig, precision: str) -> bool:
    """Whether DeepSpeed casts the model, as mini_llm/engine/distributed/deepspeed_config.py decides."""
    path = deepspeed_file(config.runtime.deepspeed)
    return precision == "fp16" or (path is not None and read_deepspeed(path).get("bf16", {}).get("enabled") is True)


def _memory_table(config: PretrainConfig, plan: Plan, setup: Setup, parameters: Parameters) -> Table:
    """Parts by ZeRO stage; the chosen stage has a star."""
    where = "rank" if setup.ranks > 1 else "process"
    optimizer = "Muon and AdamW" if setup.muon else "AdamW"
    table = Table(
        title=f"Memory of each {where}: {setup.ranks} x {setup.precision}, {optimizer}, "
        f"micro-batches of {setup.rows} x {setup.length}",
        title_justify="left",
    )
    table.add_column("part")
    for stage in STAGES:
        name = "no ZeRO" if stage == 0 else f"ZeRO {stage}"
        table.add_column(f"{name} *" if stage == setup.stage else name, justify="right")
    casts = _casts(config, setup.precision)
    trials = [replace(setup, stage=stage, cast=stage > 0 and casts) for stage in STAGES]
    found = [memory(plan.config, trial, process_bytes(trial), parameters) for trial in trials]
    for part in found[0].parts:
        if any(m.parts[part] for m in found):
            table.add_row(part, *(size(m.parts[part]) for m in found))
        if part == "activations":
            for every, name in ((0, "  all kept"), (1, "  with gradient checkpointing")):
                if every != setup.checkpoint_every:
                    other = [activations(plan.config, replace(trial, checkpoint_every=every)) for trial in trials]
                    table.add_row(name, *(size(number) for number in other), style="dim")
    table.add_section()
    table.add_row("alive at most", *(size(m.tensors) for m in found))
    table.add_row("  at the moment of", *(m.moment for m in found), style="dim")
    table.add_row("[bold]peak[/bold]", *(size(m.peak) for m in found))
    other = 0 if setup.checkpoint_every else 1
    peaks = [
        memory(plan.config, replace(trial, checkpoint_every=other), process_bytes(trial), parameters).peak
        for trial in trials
    ]
    table.add_row(f"  {'with' if other else 'without'} gradient checkpointing", *(size(p) for p in peaks), style="dim")
    return table


def _run_table(
    config: PretrainConfig, draft: Draft, setup: Setup, parameters: Parameters, device: torch.device, here: bool
) -> Table:
    plan = draft.plan
    per_token = flops_per_token(plan.config, plan.rows.length, plan.rows.label_share)
    tokens = plan.max_steps * plan.global_batch_size * plan.rows.tokens
    table = Table(title="The run", title_justify="left")
    for column in ("what", "value", "how"):
        table.add_column(column)
    parts = ("embedding", "blocks", "head", "norms")
    table.add_row("parameters", f"{parameters.total:,}", ", ".join(f"{p} {getattr(parameters, p):,}" for p in parts))
    table.add_row("FLOPs per token", f"{per_token:,.0f}", "6 per matrix weight, and attention")
    table.add_row("tokens", f"{tokens:,}", f"{plan.max_steps:,} steps of {plan.global_batch_size * plan.rows.tokens:,}")
    table.add_row("FLOPs", f"{tokens * per_token:.3g}", "")
    if here:
        speed, how = _speed(config, plan, setup, per_token, device)
        seconds = tokens / speed
        table.add_row("tokens per second", f"{speed:,.0f}", how)
        table.add_row("time", _duration(seconds), "for these tokens, without evaluation and saving")
        if config.budget_seconds and seconds > config.budget_seconds:
            reached = int(speed * config.budget_seconds)
            table.add_row("", config.budget, f"the budget: it ends after about {reached:,} tokens")
    adam = parameters.total - (parameters.hidden if setup.muon else 0)
    checkpoint = 4 * parameters.total + 4 * parameters.total + 4 * adam
    most = (config.keep_last + 1) * checkpoint + 3 * 4 * parameters.total
    table.add_row("a checkpoint", size(checkpoint), "weights and optimizer state in fp32")
    free = shutil.disk_usage(Path.cwd()).free
    table.add_row("run directory", size(most), f"at most, while a checkpoint is written; {size(free)} are free")
    width = token_dtype(plan.config.vocab_size).itemsize
    table.add_row("token store", size(draft.tokens * width), f"{draft.tokens:,} tokens of {width} bytes")
    return table


def _speed(
    config: PretrainConfig, plan: Plan, setup: Setup, per_token: float, device: torch.device
) -> tuple[float, str]:
    """(tokens per second of all ranks, where the figure comes from)."""
    ranks = setup.ranks if device.type == "cuda" else 1
    ceiling = matmul_ceiling(device, DTYPES[setup.precision])
    micro = setup.rows * plan.rows.tokens
    share = expected_mfu(device)
    expected = micro * per_token / (share * ceiling)
    estimate = ranks * share * ceiling / per_token
    basis = f"estimated: {share:.0%} of {ceiling / 1e9:,.0f} GFLOP/s"
    if expected > MEASURED_SECONDS:
        return estimate, f"{basis}; one micro-batch would take {_duration(expected)}"
    alone = config.model_copy(
        update={"runtime": config.runtime.model_copy(update={"zero_stage": None, "deepspeed": None})}
    )
    trial = replace(setup, ranks=1, stage=0, cast=False, accumulation=min(setup.accumulation, MEASURED_ACCUMULATION))
    start_processes(alone.runtime)
    first, *others = rehearse(alone, plan.config, trial, MEASURED_STEPS, MEASURED_SECONDS)
    seconds = median(others or [first])
    speed = micro * trial.accumulation / seconds
    how = f"measured here, {len(others or [first])} steps of {trial.accumulation} micro-batches"
    mfu = speed * per_token / ceiling
    how += f"; {mfu:.0%} of {ceiling / 1e9:,.0f} GFLOP/s"
    if setup.ranks > 1:
        how += ", one process" + (f" x {ranks}" if ranks > 1 else "; ranks on one CPU share it") + ", no communication"
    return ranks * speed, how


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
