"""The default sizes of a run, from its budget and the machine. Given values are kept; each rule gives its reason."""

import math
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

from ..config import PretrainConfig
from ..objectives.lengths import PairLengths
from ..objectives.spans import span_shape
from ..presets import build_config, read_preset, shape_of
from ..warm_start.choose import WarmStart, plan_warm_start
from .reasons import Reasons

# Model FLOPs utilization (MFU) of small models, with PyTorch's operators and with our CPU kernels; used only by the
# rules below.
EXPECTED_MFU, EXPECTED_MFU_WITH_KERNELS = 0.3, 0.4
HEAD_DIM = 64
VOCABULARY_MULTIPLE = 64
SHORTEST = 4  # tokens of a row
# Hoffmann et al. 2022. Measured with 4e12 FLOPs on reviews: width 64 beats 128, and 128 beats 192, for GPT and MLM.
TOKENS_PER_WEIGHT = 20
# Muennighoff et al. 2023: four epochs are nearly as good as new text, sixteen add little. On tinyshakespeare in 180 s,
# width 192 and 7 epochs end at 2.113 bits per byte (overfitted), 256 and 4 epochs at 2.046, 320 and 3 epochs at 2.083.
EPOCHS_WANTED, MOST_TIMES_WEIGHTS = 4, 6
# Measured on 2e6 tokens of reviews at width 96: 1,000 steps of 2,048 tokens end at a masked loss of 4.65, 250 steps of
# 8,192 at 4.91. Steps of fewer than 2,048 tokens leave the machine partly idle.
STEPS_WANTED = 2000
SMALLEST_STEP, LARGEST_STEP = 2048, 524_288
LONGEST_PAIR, LENGTH_MULTIPLE = 512, 64
# Compiled blocks are 8 to 9 % faster on two cores after 11 to 24 s of compiling, but no faster than our kernels
# (docs/LOG.md). Without a budget, the duration is estimated from the FLOPs at these ceilings; on a slower
# machine the run is longer and compiling pays off even more.
SECONDS_TO_COMPILE = {"cpu": 600.0, "cuda": 180.0}
NOMINAL_CEILING = {"cpu": 4e11, "cuda": 1e15}


@dataclass
class RowShape:
    """Tokens of one training row.

    tokens: all that the model reads and writes. text: tokens of the corpus that they stand for. length: positions that
    self-attention spans. label_share: fraction of `tokens` that reaches the vocabulary head.
    """

    tokens: int
    text: int
    length: int
    label_share: float

    @classmethod
    def of(cls, model: ModelConfig, length: int, pairs: PairLengths | None) -> "RowShape":
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
    """Sizes of one run, and the reason for each choice."""

    config: ModelConfig
    length: int
    row: RowShape
    global_batch_size: int
    micro_batch_size: int
    max_steps: int
    compile: bool
    warm_start: WarmStart
    reasons: Reasons

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
    """Choose every size that `config` leaves open.

    source: the model to continue from, if any. tokens: size of the training text. pairs: what is trained on in place of
    that text, if anything. Raises ConfigError for sizes that contradict each other or `source`.
    """
    reasons = Reasons()
    flops = expected_flops(config, ranks, device)
    if source is None:
        model = _new_model(config, tokenizer, tokens, pairs, flops, reasons)
    else:
        model = _source_model(config, source, reasons)
    length = model.max_position_embeddings
    if pairs is None and (most := longest_window(tokens, model.is_encoder_decoder)) < length:
        length = most
        reasons.add("window", f"{length:,} tokens", f"the training text has {tokens:,} tokens only")
    row = RowShape.of(model, length, pairs)
    per_token = flops_per_token(model, row.length, row.label_share)

    wanted = _tokens_per_step(flops, per_token)
    fitting = max(1, wanted // row.tokens // ranks) * ranks
    why = f"{wanted:,} tokens: about {STEPS_WANTED} steps or more"
    batch = reasons.choose("global_batch_size", config.global_batch_size, fitting, why)
    fitting = _micro_batch_size(batch // ranks, row.tokens, device)
    micro = reasons.choose("micro_batch_size", config.micro_batch_size, fitting, "fits the caches")

    per_epoch = max(1, (pairs.count if pairs else tokens // row.text) // batch)
    steps = max(1, round(config.max_epochs * per_epoch))
    if config.max_steps:
        steps = min(steps, config.max_steps)
    why = f"{steps / per_epoch:.3g} epochs of {f'{pairs.count:,} pairs' if pairs else f'{tokens:,} tokens'}"
    reasons.add("max_steps", f"{steps:,}", why + (f", or {config.budget} of time" if config.budget else ""))
    reasons.add("FLOPs per token", f"{per_token:,.0f}", "6 per matrix weight, and attention")

    work = steps * batch * row.tokens * per_token
    if flops is None:
        seconds = work / (expected_mfu(device) * NOMINAL_CEILING[device.type] * ranks)
    else:
        seconds = config.budget_seconds * min(1.0, work / flops)
    compiles, why = _compiles(config, seconds, device)
    reasons.add("compile", "yes" if compiles else "no", why)
    warm_start = WarmStart()
    if source is None:
        spent = min(work, flops or work)
        warm_start, model = plan_warm_start(config, model, 0 if pairs else tokens, spent, per_token, reasons)
    return Plan(model, length, row, batch, micro, steps, compiles, warm_start, reasons)


def _new_model(
    config: PretrainConfig,
    tokenizer: Any,
    tokens: int,
    pairs: PairLengths | None,
    flops: float | None,
    reasons: Reasons,
) -> ModelConfig:
    """The model of a run that trains from scratch."""
    sizes, shape = config.sizes, shape_of(**read_preset(config.model))
    # The rule for small corpora was measured with decoders only; an encoder gets new masks in every epoch.
    repeated = tokens if shape == "causal" and pairs is None else math.inf
    width = reasons.choose("hidden_size", sizes.hidden_size, *_width(flops, repeated))
    depth, why = max(4, width // 64), "width / 64, at least 4"
    if shape == "seq2seq":
        depth, why = -(-depth // 2), "half of (width / 64, at least 4) for the encoder and for the decoder"
    layers = reasons.choose("num_hidden_layers", sizes.num_hidden_layers, depth, why)
    heads = reasons.choose("num_attention_heads", sizes.num_attention_heads, _heads(width), f"head_dim near {HEAD_DIM}")
    length, why = _length(width), "longer for wider models"
    if pairs is not None:
        length = min(LONGEST_PAIR, -(-pairs.longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
        why = f"the longest text, at most {LONGEST_PAIR}"
    elif (most := longest_window(tokens, shape == "seq2seq")) < length:
        length, why = most, f"the training text has {tokens:,} tokens only"
    length = reasons.choose("length", sizes.max_position_embeddings, length, why)
    vocabulary = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    why = f"{tokenizer.vocab_size:,} tokens, rounded up to a multiple of {VOCABULARY_MULTIPLE}"
    reasons.add("vocab_size", f"{vocabulary:,}", why)
    return model_config(config, tokenizer, vocabulary, width, layers, heads, length)


def longest_window(tokens: int, spans: bool) -> int:
    """The longest row that every objective can cut from a text of `tokens` at any offset, and at least SHORTEST."""
    length = max(SHORTEST, tokens // 2)
    while spans and length > SHORTEST and 2 * span_shape(length).text - 1 > tokens:
        length -= 1
    return length


def _source_model(config: PretrainConfig, source: ModelConfig, reasons: Reasons) -> ModelConfig:
    """The model to continue from. Raises ConfigError for a given size that differs from it."""
    for name, value in config.sizes.model_dump(exclude={"dropout"}).items():
        found = getattr(source, name)
        if value is not None and value != found:
            raise ConfigError(f"sizes.{name}={value}, but {config.init} has {found}; leave it out")
    size = f"width {source.hidden_size}, {source.num_hidden_layers} layers, {source.vocab_size:,} tokens"
    reasons.add("model", size, f"from {config.init}")
    return replace(source, dropout=config.sizes.dropout)


def _compiles(config: PretrainConfig, seconds: float, device: torch.device) -> tuple[bool, str]:
    """Whether a run of this duration compiles its blocks, and the reason."""
    shortest = SECONDS_TO_COMPILE[device.type]
    if config.runtime.compile != "auto":
        return config.runtime.compile, "given"
    if zero_stage(config.runtime) is not None:
        return False, "DeepSpeed's hooks prevent it"
    if config.pairs is not None:
        return False, "pairs vary in length"
    if has_kernels(device):
        return False, "our kernels are as fast"
    if seconds < shortest:
        return False, f"pays off from {shortest / 60:.0f} minutes on"
    if compiler() is None:
        return False, "no C++ compiler found"
    return True, f"pays off from {shortest / 60:.0f} minutes on"


def expected_flops(config: PretrainConfig, ranks: int, device: torch.device) -> float | None:
    """Floating-point operations that fit into the budget on this machine; None without a budget."""
    if config.budget_seconds is None:
        return None
    ceiling = matmul_ceiling(device, DTYPES[resolve_precision(config.runtime.precision, device)])
    return expected_mfu(device) * ceiling * ranks * config.budget_seconds


def expected_mfu(device: torch.device) -> float:
    """The MFU that the rules assume."""
    return EXPECTED_MFU_WITH_KERNELS if has_kernels(device) else EXPECTED_MFU


def expected_width(config: PretrainConfig, ranks: int, device: torch.device) -> int:
    """hidden_size, given or by rule; the default vocabulary size depends on it."""
    return config.sizes.hidden_size or _width(expected_flops(config, ranks, device))[0]


def model_config(
    config: PretrainConfig, tokenizer: Any, vocabulary: int, width: int, layers: int, heads: int, length: int
) -> ModelConfig:
    """The preset's architecture with these sizes and the tokenizer's special ids. Raises ConfigError."""
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
        # Padding starts every target, as in T5 and Marian.
        chosen["decoder_start_token_id"] = tokenizer.pad_id
    return build_config(config.model, {**config.sizes.model_dump(), **chosen})


def _width(flops: float | None, tokens: float = math.inf) -> tuple[int, str]:
    """The width for which `flops` pay for TOKENS_PER_WEIGHT tokens per weight of the blocks, and the reason.

    When that is more than EPOCHS_WANTED epochs of a corpus of `tokens`, a wider model trains for fewer epochs instead.
    """
    if flops is None:
        return 256, "no budget given"
    weights = math.sqrt(flops / (6 * TOKENS_PER_WEIGHT))
    why = f"about {flops:.1e} FLOPs, {TOKENS_PER_WEIGHT} tokens per weight"
    if (more := flops / (6 * EPOCHS_WANTED * tokens)) > weights:
        weights = min(more, MOST_TIMES_WEIGHTS * weights)
        why = f"wider: the width for the budget would read {tokens:,} tokens more than {EPOCHS_WANTED} times"
    # 12 width^2 weights per block; width / 64 blocks, at least 4.
    width = math.sqrt(weights / 48)
    if width > 4 * HEAD_DIM:
        width = (weights * HEAD_DIM / 12) ** (1 / 3)
    # Skip 224: it gives head_dim 56, which the kernels do not support.
    step = HEAD_DIM // 2 if width < 3 * HEAD_DIM else HEAD_DIM
    return max(HEAD_DIM, step * round(width / step)), why


def _heads(width: int) -> int:
    """Number of heads for the even head_dim nearest to 64 that divides the width."""
    wanted = max(1, round(width / HEAD_DIM))
    legal = [heads for heads in range(1, width + 1) if width % heads == 0 and (width // heads) % 2 == 0]
    return min(legal, key=lambda heads: abs(heads - wanted)) if legal else 1


def _length(width: int) -> int:
    return 128 if width < 256 else 256 if width < 512 else 1024


def _tokens_per_step(flops: float | None, per_token: float) -> int:
    """The power of two of tokens that gives about STEPS_WANTED steps."""
    wanted = SMALLEST_STEP if flops is None else flops / per_token / STEPS_WANTED
    return min(LARGEST_STEP, max(SMALLEST_STEP, 2 ** round(math.log2(wanted))))


def _micro_batch_size(rows: int, length: int, device: torch.device) -> int:
    """The largest divisor of this rank's `rows` that stays within the tokens of one forward pass."""
    limit = max(1, (65_536 if device.type == "cuda" else 4096) // length)
    return next(size for size in range(min(limit, rows), 0, -1) if rows % size == 0)
