"""The default sizes of a run, from its budget and the machine. Each rule gives its reason; anything given is kept."""

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
    ceiling: float | None = None,
) -> Plan:
    """Fill in every size that `config` leaves open. `ceiling` (FLOP/s of one rank) is measured when not given."""
    reasons: list[tuple[str, str, str]] = []

    def choose(what: str, given: int | None, rule: int, why: str) -> int:
        value = given if given is not None else rule
        reasons.append((what, f"{value:,}", "given" if given is not None else why))
        return value

    sizes = config.sizes
    if ceiling is None:
        ceiling = matmul_ceiling(device, DTYPES[resolve_precision(config.runtime.precision, device)])
    budget = config.budget_seconds
    flops = EXPECTED_MFU * ceiling * ranks * budget if budget else None
    width = choose("hidden_size", sizes.hidden_size, _width(flops, len(store)), _width_reason(flops))
    layers = choose("num_hidden_layers", sizes.num_hidden_layers, max(2, width // 64), "width / 64: wide and shallow")
    heads = choose("num_attention_heads", sizes.num_attention_heads, max(1, width // HEAD_DIM), f"heads of {HEAD_DIM}")
    length = choose("length", sizes.max_position_embeddings, _length(width), "longer for wider models")
    vocabulary = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    reasons.append(("vocab_size", f"{vocabulary:,}", f"{tokenizer.vocab_size:,} pieces, up to a multiple of 64"))
    model = model_config(config, tokenizer, vocabulary, width, layers, heads, length)

    batch = choose(
        "global_batch_size",
        config.global_batch_size,
        max(ranks, -(-_tokens_per_step(width) // length // ranks) * ranks),
        f"about {_tokens_per_step(width):,} tokens a step: small budgets need many steps",
    )
    micro = choose("micro_batch_size", config.micro_batch_size, _micro(batch, ranks, length, device), "fits the caches")
    per_epoch = max(1, len(store) // (batch * length))
    steps = max(1, round(config.max_epochs * per_epoch))
    if config.max_steps:
        steps = min(steps, config.max_steps)
    reasons.append(
        ("max_steps", f"{steps:,}", f"{steps / per_epoch:.3g} epochs of {len(store):,} tokens; budget {config.budget}")
    )
    reasons.append(("FLOPs per token", f"{flops_per_token(model, length):,.0f}", "6 per matrix weight, and attention"))
    return Plan(model, length, batch, micro, steps, reasons)


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


def _width(flops: float | None, tokens: int) -> int:
    return 256


def _width_reason(flops: float | None) -> str:
    return "no budget given" if flops is None else f"for about {flops:.1e} FLOPs"


def _length(width: int) -> int:
    return 128 if width < 256 else 256 if width < 512 else 1024


def _tokens_per_step(width: int) -> int:
    return 4096 if width < 512 else 65_536


def _micro(batch: int, ranks: int, length: int, device: torch.device) -> int:
    """The largest divisor of this rank's rows within the tokens of one forward pass."""
    limit = max(1, (65_536 if device.type == "cuda" else 4096) // length)
    mine = batch // ranks
    return next(size for size in range(min(limit, mine), 0, -1) if mine % size == 0)
