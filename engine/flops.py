"""Floating-point operations of training, counted as PaLM and nanoGPT do (full attention square, no recompute)."""

from model import ModelConfig


def flops_per_token(config: ModelConfig, length: int, head_share: float = 1.0) -> float:
    """Forward and backward FLOPs per token of sequences of `length`: 6 per matrix weight + 12 L H D T for attention.

    `head_share` is the share of positions that reach the vocabulary head. Embedding look-ups count nothing.
    """
    width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    block = config.hidden_size * (2 * width + 2 * kv_width + 3 * config.intermediate_size)
    head = config.hidden_size * config.vocab_size
    if not config.causal:
        head += config.hidden_size**2
    attention = 12 * config.num_hidden_layers * width * length
    return 6 * (config.num_hidden_layers * block + head_share * head) + attention
