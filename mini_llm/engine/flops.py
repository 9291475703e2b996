"""Floating-point operations of training, what the device can do, and the share of it that a run reaches (MFU).

FLOPs are counted as in PaLM (Chowdhery et al. 2022, appendix B) and nanoGPT: the full attention square, no recompute.
"""

import time
from collections.abc import Callable
from functools import cache

import torch

from mini_llm.engine.batch import Batch
from mini_llm.model import ModelConfig


def flops_per_token(config: ModelConfig, length: int, head_share: float = 1.0) -> float:
    """Forward and backward FLOPs per token of sequences of `length`: 6 per matrix weight + 12 L H D T for attention.

    `head_share` is the share of tokens that reach the vocabulary head. For an encoder-decoder, `length` is the
    encoder's, the tokens of both are counted, and `head_share` of them are the decoder's. Embedding look-ups are free.
    """
    width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    # Weights of the query and output projections, and of the key and value projections.
    query_output, key_value = 2 * config.hidden_size * width, 2 * config.hidden_size * kv_width
    mlp = (3 if config.gated_mlp else 2) * config.hidden_size * config.intermediate_size
    head = config.hidden_size * config.vocab_size
    attention = 12 * width * length
    if config.is_encoder_decoder:
        layers = config.decoder_layers
        # Cross-attention computes keys and values of every encoder token, in each decoder layer.
        encoder = config.num_hidden_layers * (6 * (query_output + key_value + mlp) + attention) + 6 * layers * key_value
        target_length = length * head_share / max(1 - head_share, 1e-9)
        both_attentions = attention + 12 * width * target_length
        decoder = layers * (6 * (2 * query_output + key_value + mlp) + both_attentions) + 6 * head
        return (1 - head_share) * encoder + head_share * decoder
    if not config.causal:
        # The masked-LM head has a dense layer before the vocabulary.
        head += config.hidden_size**2
    layer = query_output + key_value + mlp
    return 6 * (config.num_hidden_layers * layer + head_share * head) + config.num_hidden_layers * attention


class Throughput:
    """Tokens per second of a training step over all ranks, and its MFU (model FLOPs utilization).

    flops_per_token(share): FLOPs per token when this share of the tokens has a label; None: no MFU.
    """

    def __init__(
        self, flops_per_token: Callable[[float], float] | None, device: torch.device, dtype: torch.dtype, ranks: int
    ) -> None:
        self.flops_per_token = flops_per_token
        self.ranks = ranks
        self.ceiling = matmul_ceiling(device, dtype) * ranks if flops_per_token else 0.0

    def measure(self, micro_batches: list[Batch], seconds: float) -> tuple[float, float]:
        """(tokens per second, MFU) of a step that took `seconds` on this rank's `micro_batches`; MFU 0 if unknown."""
        tokens = sum(_tokens(batch) for batch in micro_batches)
        speed = tokens * self.ranks / seconds
        if self.flops_per_token is None:
            return speed, 0.0
        share = sum(batch["labels"].numel() for batch in micro_batches) / tokens
        return speed, speed * self.flops_per_token(share) / self.ceiling


def _tokens(batch: Batch) -> int:
    """Tokens of the encoder and of the decoder."""
    return sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)


@cache
def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """measure_matmul, once per process, so that all decisions use the same figure."""
    return measure_matmul(device, dtype)


def measure_matmul(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of square matrix products (1,024 on a CPU, 8,192 on a GPU): the best of those run within `seconds`."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, stop = 0.0, time.perf_counter() + seconds
    torch.mm(a, b)
    # At least once: on a busy machine the first product may take longer than `seconds`.
    while not best or time.perf_counter() < stop:
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
