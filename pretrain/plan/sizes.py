"""The default sizes of a run, from its budget and the machine. Each rule gives its reason; anything given is kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table

from mini_llm.engine.device import DTYPES, resolve_precision
from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.flops import flops_per_token, matmul_ceiling
from mini_llm.engine.kernels.load import has_kernels
from mini_llm.engine.run.machine import compiler
from mini_llm.model import ModelConfig

from ..config import ModelSizes, PretrainConfig
from ..objectives.lengths import PairLengths
from ..objectives.spans import span_shape
from ..presets import build_config, read_preset, shape_of
from ..warm_start.choose import Beginning, plan_beginning

# Share of the matrix-product ceiling that training small models reaches, and with our kernels on a CPU; only the rules
# below depend on it.
EXPECTED_MFU, EXPECTED_WITH_KERNELS = 0.3, 0.4
HEAD_DIM = 64
VOCABULARY_MULTIPLE = 64
# Hoffmann et al. 2022. Measured at 4e12 FLOPs of reviews: 64 wide is better than 128, and 128 than 192, GPT and MLM.
TOKENS_PER_WEIGHT = 20
# Muennighoff et al. 2023: four epochs are nearly as good as new text, sixteen hardly better. On tinyshakespeare,
# 180 s: 192 wide and 7 epochs end at 2.113 bits per byte, having overfitted, 256 wide and 4 epochs at 2.046, 320 wide
# and 3 epochs at 2.083.
EPOCHS_WANTED, MOST_TIMES_WEIGHTS = 4, 6
# Measured on 2e6 tokens of reviews, 96 wide: 1,000 steps of 2,048 tokens end at a masked loss of 4.65, 250 steps of
# 8,192 at 4.91. Steps below 2,048 tokens no longer fill the machine.
STEPS_WANTED = 2000
SMALLEST_STEP, LARGEST_STEP = 2048, 524_288
LONGEST_PAIR, LENGTH_MULTIPLE = 512, 64
# Compiled blocks: 8 to 9 % faster on two cores, after 11 to 24 s of compiling, but no faster than our kernels
# (benchmarks/RESULTS.md). Without a budget the time is what the FLOPs would take at these ceilings; where that is too
# short, compiling pays all the more.
SECONDS_TO_COMPILE = {"cpu": 600.0, "cuda": 180.0}
NOMINAL_CEILING = {"cpu": 4e11, "cuda": 1e15}


@dataclass
class Row:
    """Tokens of one training row: those that the model reads and writes, and those of the text it stands for.

    `length`: what self-attention spans; `label_share`: the part of `tokens` that the vocabulary head sees.
    """

    tokens: int
    text: int
    length: int
    label_share: float

    @classmethod
    def of(cls, model: ModelConfig, length: int, pairs: PairLengths | None) -> "Row":
        if pairs is not None:
            tokens = max(2, round(pairs.mean_source + pairs.mean_target))
            return cls(tokens, tokens, max(1, round(pairs.mean_source)), pairs.mean_target / tokens)
        if model.is_encoder_decoder:
            shape = span_shape(length)
            tokens = length + shape.targets
            return cls(tokens, shape.text, length, shape.targets / tokens)
        return cls(length, length, length, 1.0)


@dataclass
class Plan:
    """Sizes of one run and the reason for each choice."""

    config: ModelConfig
    length: int
    rows: Row
    global_batch_size: int
    micro_batch_size: int
    max_steps: int
    compile: bool
    beginning: Beginning
    reasons: list[tuple[str, str, str]]

    def table(self) -> Table:
        table = Table(title="Plan", title_justify="left")
        for column in ("what", "value", "why"):
            table.add_column(column)
        for row in self.reasons:
            table.add_row(*row)
        return table


def make_plan(
    config: PretrainConfig,
    source: ModelConfig | None,
    tokenizer: Any,
    tokens: int,
    pairs: PairLengths | None,
    ranks: int,
    device: torch.device,
) -> Plan:
    """Fill in every size that `config` leaves open; `source` is the model to go on from.

    `tokens`: of the training text; `pairs`: what is learned from instead, where there are any.
    Raises ConfigError for sizes that contradict each other or `source`.
    """
    reasons: list[tuple[str, str, str]] = []

    def choose(what: str, given: int | None, rule: int, why: str) -> int:
        value = given if given is not None else rule
        reasons.append((what, f"{value:,}", "given" if given is not None else why))
        return value

    flops = expected_flops(config, ranks, device)
    if source is None:
        model = _by_rule(config, tokenizer, tokens, pairs, flops, choose, reasons)
    else:
        model = replace(source, dropout=config.sizes.dropout)
        _check_sizes(config.sizes, model, config.init)
        size = f"{model.hidden_size} wide, {model.num_hidden_layers} layers, {model.vocab_size:,} pieces"
        reasons.append(("model", size, f"that of {config.init}"))
    length = model.max_position_embeddings

    rows = Row.of(model, length, pairs)
    per_token = flops_per_token(model, rows.length, rows.label_share)
    wanted = _tokens_per_step(flops, per_token)
    batch = choose(
        "global_batch_size",
        config.global_batch_size,
        max(1, wanted // rows.tokens // ranks) * ranks,
        f"{wanted:,} tokens: some {STEPS_WANTED} steps or more",
    )
    micro = choose(
        "micro_batch_size", config.micro_batch_size, _micro(batch, ranks, rows.tokens, device), "fits the caches"
    )
    per_epoch = max(1, (pairs.count if pairs else tokens // rows.text) // batch)
    steps = max(1, round(config.max_epochs * per_epoch))
    if config.max_steps:
        steps = min(steps, config.max_steps)
    why = f"{steps / per_epoch:.3g} epochs of {f'{pairs.count:,} pairs' if pairs else f'{tokens:,} tokens'}"
    reasons.append(("max_steps", f"{steps:,}", why + (f", or {config.budget} of time" if config.budget else "")))
    reasons.append(("FLOPs per token", f"{per_token:,.0f}", "6 per matrix weight, and attention"))
    work = steps * batch * rows.tokens * per_token
    if flops is None:
        seconds = work / (expected_mfu(device) * NOMINAL_CEILING[device.type] * ranks)
    else:
        seconds = config.budget_seconds * min(1.0, work / flops)
    compiles, why = _compiles(config, seconds, device)
    reasons.append(("compile", "yes" if compiles else "no", why))
    beginning = Beginning()
    if source is None:
        spent = min(work, flops or work)
        beginning, model, rows_of_it = plan_beginning(config, model, 0 if pairs else tokens, spent, per_token)
        reasons += rows_of_it
    return Plan(model, length, rows, batch, micro, steps, compiles, beginning, reasons)


def _compiles(config: PretrainConfig, seconds: float, device: torch.device) -> tuple[bool, str]:
    """Whether a run of so many seconds compiles its blocks, and the reason."""
    wanted = SECONDS_TO_COMPILE[device.type]
    if config.runtime.compile != "auto":
        return config.runtime.compile, "given"
    if zero_stage(config.runtime) is not None:
        return False, "DeepSpeed's hooks stand in the way"
    if config.pairs is not None:
        return False, "the lengths of pairs vary"
    if has_kernels(device):
        return False, "our kernels are as fast"
    if seconds < wanted:
        return False, f"pays from {wanted / 60:.0f} minutes on"
    if compiler() is None:
        return False, "no C++ compiler found"
    return True, f"pays from {wanted / 60:.0f} minutes on"


def _by_rule(
    config: PretrainConfig,
    tokenizer: Any,
    tokens: int,
    pairs: PairLengths | None,
    flops: float | None,
    choose: Callable[[str, int | None, int, str], int],
    reasons: list[tuple[str, str, str]],
) -> ModelConfig:
    """The model of a run that starts from nothing."""
    sizes, shape = config.sizes, shape_of(**read_preset(config.model))
    two_trunks = shape == "seq2seq"
    # Measured with decoders alone; the masks of an encoder are new in every epoch.
    repeated = tokens if shape == "causal" and pairs is None else math.inf
    width = choose("hidden_size", sizes.hidden_size, *_width(flops, repeated))
    depth, depth_reason = max(4, width // 64), "width / 64, at least 4"
    if two_trunks:
        depth, depth_reason = -(-depth // 2), "half of (width / 64, at least 4) in each trunk"
    layers = choose("num_hidden_layers", sizes.num_hidden_layers, depth, depth_reason)
    heads = choose("num_attention_heads", sizes.num_attention_heads, _heads(width), f"heads of {HEAD_DIM}")
    if pairs is None:
        length = choose("length", sizes.max_position_embeddings, _length(width), "longer for wider models")
    else:
        longest = min(LONGEST_PAIR, -(-pairs.longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
        length = choose("length", sizes.max_position_embeddings, longest, f"the longest text, at most {LONGEST_PAIR}")
    vocabulary = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    reasons.append(("vocab_size", f"{vocabulary:,}", f"{tokenizer.vocab_size:,} pieces, up to a multiple of 64"))
    return model_config(config, tokenizer, vocabulary, width, layers, heads, length)


def _check_sizes(sizes: ModelSizes, model: ModelConfig, origin: str) -> None:
    """Raises ConfigError for a size that is given and is not that of `model`."""
    for name, value in sizes.model_dump(exclude={"dropout"}).items():
        found = getattr(model, name)
        if value is not None and value != found:
            raise ConfigError(f"sizes.{name}={value}, but {origin} has {found}; leave it out")


def expected_flops(config: PretrainConfig, ranks: int, device: torch.device) -> float | None:
    """Floating-point operations that the budget buys on this machine, or None without a budget."""
    if config.budget_seconds is None:
        return None
    ceiling = matmul_ceiling(device, DTYPES[resolve_precision(config.runtime.precision, device)])
    return expected_mfu(device) * ceiling * ranks * config.budget_seconds


def expected_mfu(device: torch.device) -> float:
    """The share of the ceiling that the rules reckon with."""
    return EXPECTED_WITH_KERNELS if has_kernels(device) else EXPECTED_MFU


def expected_width(config: PretrainConfig, ranks: int, device: torch.device) -> int:
    """hidden_size, given or by rule: the tokenizer's default size depends on it."""
    return config.sizes.hidden_size or _width(expected_flops(config, ranks, device))[0]


def model_config(
    config: PretrainConfig, tokenizer: Any, vocabulary: int, width: int, layers: int, heads: int, length: int
) -> ModelConfig:
    """The architecture of the preset with these sizes and the tokenizer's ids. Raises ConfigError."""
    chosen = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": length,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    shape = shape_of(**read_preset(config.model))
    if shape == "masked":
        chosen |= {"cls_token_id": tokenizer.cls_id, "sep_token_id": tokenizer.sep_id}
    if shape == "seq2seq":
        # As T5 and Marian do: what is no token of a text begins every one.
        chosen["decoder_start_token_id"] = tokenizer.pad_id
    return build_config(config.model, {**config.sizes.model_dump(), **chosen})


def _width(flops: float | None, tokens: float = math.inf) -> tuple[int, str]:
    """The width at which `flops` buy TOKENS_PER_WEIGHT tokens for each weight of the blocks, and the reason.

    Where that is more than EPOCHS_WANTED times a corpus of `tokens`, more weights read it less often.
    """
    if flops is None:
        return 256, "no budget given"
    weights = math.sqrt(flops / (6 * TOKENS_PER_WEIGHT))
    why = f"about {flops:.1e} FLOPs, {TOKENS_PER_WEIGHT} tokens a weight"
    if (more := flops / (6 * EPOCHS_WANTED * tokens)) > weights:
        weights = min(more, MOST_TIMES_WEIGHTS * weights)
        why = f"more weights, as {tokens:,} tokens would be read more than {EPOCHS_WANTED} times"
    # 12 width^2 weights a block; width / 64 blocks, at least 4.
    width = math.sqrt(weights / 48)
    if width > 4 * HEAD_DIM:
        width = (weights * HEAD_DIM / 12) ** (1 / 3)
    # Not 224: its heads of 56 are none of the sizes that our kernels take.
    step = HEAD_DIM // 2 if width < 3 * HEAD_DIM else HEAD_DIM
    return max(HEAD_DIM, step * round(width / step)), why


def _heads(width: int) -> int:
    """Heads of 64, or as near to it as divides the width."""
    wanted = max(1, round(width / HEAD_DIM))
    legal = [heads for heads in range(1, width + 1) if width % heads == 0 and (width // heads) % 2 == 0]
    return min(legal, key=lambda heads: abs(heads - wanted)) if legal else 1


def _length(width: int) -> int:
    return 128 if width < 256 else 256 if width < 512 else 1024


def _tokens_per_step(flops: float | None, per_token: float) -> int:
    """The power of two that gives about STEPS_WANTED steps."""
    wanted = SMALLEST_STEP if flops is None else flops / per_token / STEPS_WANTED
    return min(LARGEST_STEP, max(SMALLEST_STEP, 2 ** round(math.log2(wanted))))


def _micro(batch: int, ranks: int, length: int, device: torch.device) -> int:
    """The largest divisor of this rank's rows within the tokens of one forward pass."""
    limit = max(1, (65_536 if device.type == "cuda" else 4096) // length)
    mine = batch // ranks
    return next(size for size in range(min(limit, mine), 0, -1) if mine % size == 0)
