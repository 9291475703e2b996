"""Bytes of the tensors that autograd keeps from the forward pass for the backward pass, by layer.

Formulas, because nothing measures all cases: `--memory` plans for GPUs on machines without one, meta tensors have no
autocast, and the C++ kernels cannot run on them. tests/pretrain/test_memory_plan.py compares the formulas with what
autograd keeps, within 2 %. Per-layer functions return bytes per token of a row; tables of positions, which all rows
share, are left out.
"""

from mini_llm.engine.kernels.attention import in_one_operator
from mini_llm.engine.kernels.load import LANES
from mini_llm.model import ModelConfig

from .setup import MemorySetup

# Activation functions whose gradient needs only their result, which the next linear layer keeps anyway.
FROM_RESULT = ("relu", "tanh")


def activation_bytes(config: ModelConfig, setup: MemorySetup) -> float:
    """Bytes kept from one micro-batch by the whole model except its vocabulary head."""
    total = 0.0
    for part, length, memory_length in _parts(config, setup):
        tokens = setup.rows * length
        total += _edge_bytes(part, setup) * tokens
        for i, block in enumerate(_blocks(part, setup, length, memory_length)):
            recomputed = setup.checkpoint_every and i % setup.checkpoint_every == 0
            total += setup.stream * part.hidden_size * tokens if recomputed else block
    return total


def largest_block_bytes(config: ModelConfig, setup: MemorySetup) -> float:
    """Bytes kept from one micro-batch by the largest block."""
    return max(max(_blocks(part, setup, *lengths)) for part, *lengths in _parts(config, setup))


def loss_bytes(config: ModelConfig, setup: MemorySetup) -> float:
    """Bytes per position of a chunk of the loss (mini_llm/engine/loss.py): the logits, their gradient (with kernels in
    the same memory, otherwise in fp32 and, for bf16, in bf16 too), and what the vocabulary head keeps."""
    size = config.hidden_size
    total = (setup.product if setup.kernels else 8) * config.vocab_size + setup.product * size
    if not config.causal and not config.is_encoder_decoder:
        kept = 2 - (config.head_act in FROM_RESULT)
        total += kept * setup.product * size + _norm_bytes(config, setup, size, setup.product)
    return total


def _parts(config: ModelConfig, setup: MemorySetup) -> list[tuple[ModelConfig, int, int]]:
    """(encoder or decoder, its tokens per row, tokens per row that its cross-attention reads)."""
    if not config.is_encoder_decoder:
        return [(config, setup.length, 0)]
    return [(config.encoder(), setup.length, 0), (config.decoder(), setup.target_length, setup.length)]


def _blocks(config: ModelConfig, setup: MemorySetup, length: int, memory_length: int) -> list[float]:
    """Bytes kept from one micro-batch by each block."""
    found = []
    for i, kind in enumerate(config.layer_types):
        # A mask per row, one that all rows share, or none.
        masks = 1.0 if setup.padded else 1 / setup.rows if kind == "sliding_attention" else 0.0
        has_norm = i > 0 or config.first_attention_norm
        found.append(_block_bytes(config, setup, length, memory_length, masks, has_norm) * setup.rows * length)
    return found


def _block_bytes(
    config: ModelConfig, setup: MemorySetup, length: int, memory_length: int, masks: float, has_norm: bool
) -> float:
    size, inner = config.hidden_size, config.intermediate_size
    norm = _norm_bytes(config, setup, size)
    # Autocast casts a norm's result once for all layers that read it, but the sum of a post-norm block once for each.
    post = config.norm_place == "post"
    total = (norm if has_norm else 0) + _input_bytes(setup, size, 3 if post else 1)
    total += _attention_bytes(config, setup, length, length, masks)
    if config.cross_attention:
        # Without autocast all blocks share one tensor: the encoder's output.
        memory = _input_bytes(setup, size, 2) * memory_length / length if setup.autocast else 0
        total += norm + _input_bytes(setup, size, 1) + memory
        total += _attention_bytes(config, setup, length, memory_length, 0.0, cross=True)
    total += norm + _input_bytes(setup, size, 2 if config.gated_mlp and post else 1)
    if config.gated_mlp:
        # gate and up, and without the kernel also their product. The gate's activation is recomputed
        # (mini_llm/model/activations.py).
        kept = 2 if setup.kernels and config.hidden_act == "silu" else 3
    else:
        kept = 2 - (config.hidden_act in FROM_RESULT)
    total += setup.product * inner * kept
    dropouts = (3 if config.cross_attention else 2) if config.dropout else 0
    return total + setup.product * size * dropouts


def _attention_bytes(
    config: ModelConfig, setup: MemorySetup, length: int, keys: int, masks: float, cross: bool = False
) -> float:
    """Queries, keys, values and result; beside them the softmax, or per head and query its log-sum-exp."""
    heads, size = config.num_attention_heads, config.num_attention_heads * config.head_dim
    kv_heads, kv_share = config.num_key_value_heads, keys / length
    kv = kv_heads * config.head_dim * kv_share
    learned_bias = config.position == "relative" and not cross
    if not cross and not learned_bias and length <= setup.longest_in_kernel and in_one_operator(config):
        # Queries and keys before norm and rotation; a boolean mask.
        return setup.product * (2 * size + 2 * kv) + 4 * heads + keys * masks
    total = 0.0
    if config.qk_norm:
        total += (heads + kv_heads * kv_share) * _norm_bytes(config, setup, config.head_dim, setup.product)
    if keys <= setup.longest_explicit:
        # Grouped keys and values are repeated for each query head.
        return total + setup.product * (2 * size + 2 * size * kv_share + heads * keys)
    if learned_bias:
        # The gradient of the bias needs the softmax; all of this is in fp32.
        return total + 4 * (size + 2 * size * kv_share + heads * keys) + setup.product * size
    return total + setup.product * (2 * size + 2 * kv) + 4 * heads + setup.product * keys * masks


def _edge_bytes(config: ModelConfig, setup: MemorySetup) -> float:
    """Token ids, embedding norm, dropout of the embeddings, final norm."""
    norms = int(config.embedding_norm) + int(config.final_norm)
    total = 8 + norms * _norm_bytes(config, setup, config.hidden_size)
    return total + (setup.stream * config.hidden_size if config.dropout else 0)


def _norm_bytes(config: ModelConfig, setup: MemorySetup, channels: int, width: int | None = None) -> int:
    """Input (`width` bytes an element) and statistics of one norm. PyTorch's RMSNorm on a CPU also keeps the normalized
    values, and both in fp32."""
    width = setup.stream if width is None else width
    if config.norm == "rmsnorm":
        fused = setup.device != "cpu" or (setup.kernels and channels % LANES == 0)
        return (4 if width == 4 and fused else 8) * channels + 4
    return width * channels + 2 * setup.stream


def _input_bytes(setup: MemorySetup, size: int, layers: int) -> int:
    """An input that `layers` linear layers read: autocast casts and keeps it for each of them."""
    return setup.product * size * (layers if setup.autocast else 1)
