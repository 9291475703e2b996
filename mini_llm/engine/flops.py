"""Floating-point operations of training, counted as PaLM and nanoGPT do (full attention square, no recompute)."""

import time
from functools import cache

import torch

from mini_llm.model import ModelConfig


def flops_per_token(config: ModelConfig, length: int, head_share: float = 1.0) -> float:
    """Forward and backward FLOPs per token of sequences of `length`: 6 per matrix weight + 12 L H D T for attention.

    `head_share` is the share of positions that reach the vocabulary head. Of an encoder-decoder, `length` is the
    encoder's, tokens are those of both, and `head_share` of them are the decoder's. Embedding look-ups count nothing.
    """
    width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    own, others = 2 * config.hidden_size * width, 2 * config.hidden_size * kv_width  # query and output, key and value
    mlp = (3 if config.gated_mlp else 2) * config.hidden_size * config.intermediate_size
    head = config.hidden_size * config.vocab_size
    attention = 12 * width * length
    if config.is_encoder_decoder:
        layers = config.num_decoder_layers
        # Cross-attention makes keys and values of every encoder token.
        encoder = config.num_hidden_layers * (6 * (own + others + mlp) + attention) + 6 * layers * others
        target_length = length * head_share / max(1 - head_share, 1e-9)
        across = attention + 12 * width * target_length
        decoder = layers * (6 * (2 * own + others + mlp) + across) + 6 * head
        return (1 - head_share) * encoder + head_share * decoder
    if not config.causal:
        head += config.hidden_size**2
    block = own + others + mlp
    return 6 * (config.num_hidden_layers * block + head_share * head) + config.num_hidden_layers * attention


@cache
def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """measure_matmul, once in a process: every choice rests on the same figure."""
    return measure_matmul(device, dtype)


def measure_matmul(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of square matrix products (1,024 on a CPU, 8,192 on a GPU), best of those run within `seconds`."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, stop = 0.0, time.perf_counter() + seconds
    torch.mm(a, b)
    # On a machine that is busy even the first product may outlast the time.
    while not best or time.perf_counter() < stop:
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
