"""The default sizes of a run, from its budget and the machine. Given values are kept; each rule gives its reason."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.table import Table

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.settings import Attention
from mini_llm.model import ModelConfig

from ..config import PretrainConfig
from ..ladder.use import width_by_ladder
from ..objectives.lengths import PairLengths
from ..presets import build_config, read_preset, shape_of
from ..warm_start.choose import WarmStart, plan_warm_start
from .compiling import compiles_unmeasured
from .parameters import count_parameters
from .reasons import Reasons
from .rows import RowShape, longest_window
from .setup import Way
from .speed import Speed, assumed_speed, expected_mfu

HEAD_DIM = 64
VOCABULARY_MULTIPLE = 64
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
# Without a budget, the duration is estimated from the FLOPs at these ceilings, so that the plan does not depend on a
# measurement; on a slower machine the run is longer.
NOMINAL_CEILING = {"cpu": 4e11, "cuda": 1e15}
DEFAULT_WIDTH = 256  # without a budget
# Times that the width is computed anew from its own speed.
ITERATIONS = 10


@dataclass
class Plan:
    """Sizes of one run, and the reason for each choice.

    threads, logit_rows: None for the defaults of PyTorch and mini_llm/engine/loss.py. seconds: the expected duration.
    flops_per_second: of one rank, for which the sizes were chosen; None without a budget.
    """

    config: ModelConfig
    length: int
    row: RowShape
    global_batch_size: int
    micro_batch_size: int
    max_steps: int
    compile: bool
    threads: int | None
    logit_rows: int | None
    attention: Attention
    seconds: float
    flops_per_second: float | None
    warm_start: WarmStart
    reasons: Reasons

    @property
    def way(self) -> Way:
        """How its steps are computed."""
        return Way(self.micro_batch_size, self.threads, self.logit_rows, self.attention, self.compile)

    def take(self, way: Way) -> None:
        """Compute its steps in this way."""
        self.micro_batch_size, self.compile = way.micro_batch_size, way.compile
        self.threads, self.logit_rows, self.attention = way.threads, way.logit_rows, way.attention

    def table(self) -> Table:
        table = Table(title="Plan", title_justify="left")
        for column in ("what", "value", "why"):
            table.add_column(column)
        for row in self.reasons:
            table.add_row(*row)
        return table


# The plan of a run for a speed of its training steps, or for the assumed one.
MakePlan = Callable[[Speed | None], Plan]


def make_plan(
    config: PretrainConfig,
    source: ModelConfig | None,
    tokenizer: Any,
    tokens: int,
    pairs: PairLengths | None,
    ranks: int,
    device: torch.device,
    speed: Speed | None = None,
) -> Plan:
    """Choose every size that `config` leaves open.

    source: the model to continue from, if any. tokens: size of the training text. pairs: what is trained on in place of
    that text, if anything. speed: of training steps here, by default assumed; without a budget it plays no part.
    Raises ConfigError for sizes that contradict each other or `source`.
    """
    reasons = Reasons()
    speed = None if config.budget_seconds is None else speed or assumed_speed(config, device)
    flops_at = flops_by_width(config, ranks, speed)
    if source is None:
        model = _new_model(config, tokenizer, tokens, pairs, flops_at, reasons)
    else:
        model = _source_model(config, source, reasons)
    flops = flops_at(model.hidden_size) if flops_at else None
    if speed is not None:
        reasons.add("speed", *speed.in_words(model.hidden_size))
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
    compiles, why = compiles_unmeasured(config, seconds, device)
    reasons.add("compile", "yes" if compiles else "no", why)
    runtime = config.runtime
    for name in ("threads", "logit_rows", "attention"):
        if (value := getattr(runtime, name)) not in (None, "auto"):
            reasons.add(name, str(value), "given")
    warm_start = WarmStart()
    if source is None:
        spent = min(work, flops or work)
        warm_start, model = plan_warm_start(config, model, 0 if pairs else tokens, spent, per_token, reasons)
    return Plan(
        config=model,
        length=length,
        row=row,
        global_batch_size=batch,
        micro_batch_size=micro,
        max_steps=steps,
        compile=compiles,
        threads=runtime.threads,
        logit_rows=runtime.logit_rows,
        attention=runtime.attention,
        seconds=seconds,
        flops_per_second=speed.at(model.hidden_size) if speed else None,
        warm_start=warm_start,
        reasons=reasons,
    )


def _new_model(
    config: PretrainConfig,
    tokenizer: Any,
    tokens: int,
    pairs: PairLengths | None,
    flops_at: Callable[[int], float] | None,
    reasons: Reasons,
) -> ModelConfig:
    """The model of a run that trains from scratch."""
    sizes, shape = config.sizes, shape_of(**read_preset(config.model))
    # The rule for small corpora was measured with decoders only; an encoder gets new masks in every epoch.
    repeated = tokens if shape == "causal" and pairs is None else math.inf
    width, why = suited_width(flops_at, repeated)
    by_ladder = None
    if sizes.hidden_size is None and flops_at is not None and pairs is None:
        candidate = partial(_candidate, config, tokenizer, tokens, flops_at)
        by_ladder = width_by_ladder(config, tokenizer.vocab_size, tokens, candidate)
    if by_ladder is not None:
        width, why = by_ladder.width, by_ladder.reason
    width = reasons.choose("hidden_size", sizes.hidden_size, width, why)
    if by_ladder is not None:
        reasons.add(*by_ladder.row)
    return _model_of_width(config, tokenizer, tokens, pairs, width, reasons)


def _candidate(
    config: PretrainConfig, tokenizer: Any, tokens: int, flops_at: Callable[[int], float], width: int
) -> tuple[float, float]:
    """(parameters, tokens of text within the budget) of a model of this width."""
    model = _model_of_width(config, tokenizer, tokens, None, width, Reasons())
    row = RowShape.of(model, model.max_position_embeddings, None)
    flops_per_row = row.tokens * flops_per_token(model, row.length, row.label_share)
    return count_parameters(model).total, row.text * flops_at(width) / flops_per_row


def _model_of_width(
    config: PretrainConfig, tokenizer: Any, tokens: int, pairs: PairLengths | None, width: int, reasons: Reasons
) -> ModelConfig:
    """The model of this width whose other sizes follow from it."""
    sizes, shape = config.sizes, shape_of(**read_preset(config.model))
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


def _source_model(config: PretrainConfig, source: ModelConfig, reasons: Reasons) -> ModelConfig:
    """The model to continue from. Raises ConfigError for a given size that differs from it."""
    for name, value in config.sizes.model_dump(exclude={"dropout"}).items():
        found = getattr(source, name)
        if value is not None and value != found:
            raise ConfigError(f"sizes.{name}={value}, but {config.init} has {found}; leave it out")
    size = f"width {source.hidden_size}, {source.num_hidden_layers} layers, {source.vocab_size:,} tokens"
    reasons.add("model", size, f"from {config.init}")
    return replace(source, dropout=config.sizes.dropout)


def flops_by_width(config: PretrainConfig, ranks: int, speed: Speed | None) -> Callable[[int], float] | None:
    """The floating-point operations that fit into the budget, as a function of the width; None without a budget."""
    seconds = config.budget_seconds
    return None if seconds is None or speed is None else lambda width: speed.at(width) * ranks * seconds


def expected_width(config: PretrainConfig, ranks: int, device: torch.device) -> int:
    """hidden_size, given or by rule; the default vocabulary size depends on it."""
    if config.sizes.hidden_size is not None:
        return config.sizes.hidden_size
    speed = None if config.budget_seconds is None else assumed_speed(config, device)
    return suited_width(flops_by_width(config, ranks, speed))[0]


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


def suited_width(flops_at: Callable[[int], float] | None, tokens: float = math.inf) -> tuple[int, str]:
    """The width for the floating-point operations that fit into the budget at the speed of that width, and the reason.

    tokens: size of the corpus.
    """
    if flops_at is None:
        return DEFAULT_WIDTH, "no budget given"
    width, why = DEFAULT_WIDTH, ""
    for _ in range(ITERATIONS):
        last = width
        width, why = width_by_rule(flops_at(last), tokens)
        if width == last:
            break
    return width, why


def width_by_rule(flops: float, tokens: float = math.inf) -> tuple[int, str]:
    """The width for which `flops` pay for TOKENS_PER_WEIGHT tokens per weight of the blocks, and the reason.

    When that is more than EPOCHS_WANTED epochs of a corpus of `tokens`, a wider model trains for fewer epochs instead.
    """
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
