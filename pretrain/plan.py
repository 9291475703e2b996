"""The default sizes of a run, from its budget and the machine. Each rule gives its reason; anything given is kept."""

import math
from dataclasses import dataclass

import torch
from rich.table import Table

from corpus.store import TokenStore
from engine.flops import flops_per_token
from engine.runtime import DTYPES, matmul_ceiling, resolve_precision
from model import ModelConfig
from pretrain.config import PretrainConfig

# Share of the matrix-product ceiling that training small models reaches; only the rules below depend on it.
EXPECTED_MFU = 0.3
HEAD_DIM = 64
VOCABULARY_MULTIPLE = 64
# Measured on two cores: 192 wide beats 256 at 45 s and two minutes of tinyshakespeare (5e12 and 1.6e13 FLOPs).
ANCHOR_WIDTH, ANCHOR_FLOPS = 150, 5e12
# Fewer steps than this leave the schedule no room; more make each step wasteful.
STEPS_WANTED = 500
SMALLEST_STEP, LARGEST_STEP = 2048, 524_288


@dataclass
class Plan:
    """Sizes of one run and the reason for each choice."""

    config: ModelConfig
    length: int
    global_batch_size: int
    micro_batch_size: int
    max_steps: int
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
    store: TokenStore,
    tokenizer: object,
    ranks: int,
    device: torch.device,
) -> Plan:
    """Fill in every size that `config` leaves open."""
    reasons: list[tuple[str, str, str]] = []

    def choose(what: str, given: int | None, rule: int, why: str) -> int:
        value = given if given is not None else rule
        reasons.append((what, f"{value:,}", "given" if given is not None else why))
        return value

    sizes = config.sizes
    flops = expected_flops(config, ranks, device)
    flops_reason = "no budget given" if flops is None else f"budget of about {flops:.1e} FLOPs; grows with its 6th root"
    width = choose("hidden_size", sizes.hidden_size, _width(flops), flops_reason)
    layers = choose("num_hidden_layers", sizes.num_hidden_layers, max(4, width // 64), "width / 64, at least 4")
    heads = choose("num_attention_heads", sizes.num_attention_heads, _heads(width), f"heads of {HEAD_DIM}")
    length = choose("length", sizes.max_position_embeddings, _length(width), "longer for wider models")
    vocabulary = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    reasons.append(("vocab_size", f"{vocabulary:,}", f"{tokenizer.vocab_size:,} pieces, up to a multiple of 64"))
    model = model_config(config, tokenizer, vocabulary, width, layers, heads, length)

    tokens = _tokens_per_step(flops, flops_per_token(model, length))
    rows = max(1, tokens // length // ranks) * ranks
    batch = choose(
        "global_batch_size", config.global_batch_size, rows, f"{tokens:,} tokens: some {STEPS_WANTED} steps or more"
    )
    micro = choose("micro_batch_size", config.micro_batch_size, _micro(batch, ranks, length, device), "fits the caches")
    per_epoch = max(1, len(store) // (batch * length))
    steps = max(1, round(config.max_epochs * per_epoch))
    if config.max_steps:
        steps = min(steps, config.max_steps)
    why = f"{steps / per_epoch:.3g} epochs of {len(store):,} tokens"
    reasons.append(("max_steps", f"{steps:,}", why + (f", or {config.budget} of time" if config.budget else "")))
    reasons.append(("FLOPs per token", f"{flops_per_token(model, length):,.0f}", "6 per matrix weight, and attention"))
    return Plan(model, length, batch, micro, steps, reasons)


def expected_flops(config: PretrainConfig, ranks: int, device: torch.device) -> float | None:
    """Floating-point operations that the budget buys on this machine, or None without a budget."""
    if config.budget_seconds is None:
        return None
    ceiling = matmul_ceiling(device, DTYPES[resolve_precision(config.runtime.precision, device)])
    return EXPECTED_MFU * ceiling * ranks * config.budget_seconds


def expected_width(config: PretrainConfig, ranks: int, device: torch.device) -> int:
    """hidden_size, given or by rule: the tokenizer's default size depends on it."""
    return config.sizes.hidden_size or _width(expected_flops(config, ranks, device))


def model_config(
    config: PretrainConfig, tokenizer: object, vocabulary: int, width: int, layers: int, heads: int, length: int
) -> ModelConfig:
    """The Qwen3 architecture for `gpt`, ModernBERT's for `mlm`."""
    sizes = config.sizes
    common = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": length,
        "rope_theta": sizes.rope_theta,
        "tie_word_embeddings": sizes.tie_word_embeddings,
        "dropout": sizes.dropout,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    if config.model == "gpt":
        return ModelConfig(
            causal=True, num_key_value_heads=sizes.num_key_value_heads, head_dim=sizes.head_dim, **common
        )
    return ModelConfig(
        causal=False,
        norm="layernorm",
        norm_eps=1e-5,
        embedding_norm=True,
        first_attention_norm=False,
        qk_norm=False,
        hidden_act="gelu",
        decoder_bias=True,
        classifier_pooling="mean",
        cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id,
        **common,
    )


def _width(flops: float | None) -> int:
    """Weights grow with the square root of the compute (Hoffmann et al. 2022), and as the cube of the width."""
    if flops is None:
        return 256
    return HEAD_DIM * max(1, round(ANCHOR_WIDTH * (flops / ANCHOR_FLOPS) ** (1 / 6) / HEAD_DIM))


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
