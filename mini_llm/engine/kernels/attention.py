"""Self-attention of one layer on a CPU as one operator, for training: cpp/attention.h.

In PyTorch about thirty operators lie between a layer's projections, each a pass over the whole activation. This one
keeps only queries, keys, values and the result for the backward pass.
"""

import ctypes
import sys
from typing import Any

import torch
from torch import Tensor, nn

from mini_llm.engine.kernels.load import LANES, kernels, number, pointer, size
from mini_llm.model import ModelConfig

# Largest head_dim the C++ buffers hold.
MOST_CHANNELS = 512
# Longest sequence for which the kernel is faster than PyTorch's in fp32. In bf16 it is twice as fast at any length.
LONGEST_FP32 = 1024
# With AMX, PyTorch's matrix products are faster. A constant, because torch.compile cannot trace these functions.
FASTER_IN_BF16 = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


class Layer(ctypes.Structure):
    """The struct of the same name in cpp/attention.h, field by field."""

    NUMBERS = "rows length heads kv_heads head_dim causal threads bf16 mask_row mask_query"
    POINTERS = "query_norm key_norm cosine sine mask query key value"
    _fields_ = (
        *((name, size) for name in NUMBERS.split()),
        *((name, number) for name in ("scale", "eps")),
        *((name, pointer) for name in POINTERS.split()),
    )


def supports_head(head_dim: int) -> bool:
    """Whether heads of this size consist of whole vectors and fit the buffers."""
    return head_dim % LANES == 0 and head_dim <= MOST_CHANNELS


def in_one_operator(config: ModelConfig) -> bool:
    """Whether the kernel computes the self-attention of this architecture."""
    plain = config.norm == "rmsnorm" or not config.qk_norm
    return plain and config.position != "relative" and supports_head(config.head_dim)


def longest_in_kernel(dtype: torch.dtype) -> int:
    """The longest sequence for which the kernel is the faster way with activations of this type; 0: never."""
    if dtype == torch.float32:
        return LONGEST_FP32
    return sys.maxsize if dtype == torch.bfloat16 and FASTER_IN_BF16 else 0


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_norm: nn.Module,
    k_norm: nn.Module,
    rotary: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    head_dim: int,
) -> Tensor:
    """query (B, T, H*D), key and value (B, T, K*D) before norm and rotation -> (B, T, H*D).

    The norms are RMSNorm or nn.Identity. mask (B or 1, 1, T or 1, T) is true where a key may be seen.
    """
    weights = [getattr(norm, "weight", None) for norm in (q_norm, k_norm)]
    settings = head_dim, scale, getattr(q_norm, "eps", 0.0), is_causal
    return torch.ops.mini_llm.attention(query, key, value, *weights, *(rotary or (None, None)), mask, *settings)[0]


_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? query_norm, Tensor? key_norm, Tensor? cosine, Tensor? sine, "
    "Tensor? mask, int head_dim, float scale, float eps, bool causal"
)
_TENSORS = _INPUTS.count("Tensor")
# Not torch.library.custom_op, which imports the compiler: one second at the start of a run.
_LIBRARY = torch.library.Library("mini_llm", "DEF")
_LIBRARY.define(f"attention({_INPUTS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"attention_gradients(Tensor gradient, Tensor result, Tensor normalizer, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _layer(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Layer, list[Tensor | None]]:
    """The struct, and the tensors it points into, which must outlive the call."""
    *tables, mask, head_dim, scale, eps, causal = others
    rows, length, width = query.shape
    kept = [None if t is None else t.float().contiguous() for t in tables]
    kept += [None if t is None else t.contiguous() for t in (mask, query, key, value)]
    # Elements from the mask of one row, and of one query, to the next.
    mask_query = length if mask is not None and mask.size(2) > 1 else 0
    mask_row = (mask_query or 1) * length if mask is not None and mask.size(0) > 1 else 0
    sizes = rows, length, width // head_dim, key.size(2) // head_dim, head_dim
    settings = causal, torch.get_num_threads(), query.dtype == torch.bfloat16, mask_row, mask_query, scale, eps
    return Layer(*sizes, *settings, *(None if t is None else t.data_ptr() for t in kept)), kept


def _attention(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """The result (B, T, H*D), and the logarithm of each softmax's denominator (B, H, T)."""
    layer, _kept = _layer(query, *others)
    result = torch.empty(query.shape, dtype=query.dtype)
    normalizer = torch.empty(layer.rows, layer.heads, layer.length)
    kernels().attention(ctypes.byref(layer), result.data_ptr(), normalizer.data_ptr())
    return result, normalizer


def _gradients(gradient: Tensor, result: Tensor, normalizer: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Gradients of query, key and value, and of the weights of both norms (2, D)."""
    layer, _kept = _layer(*inputs)
    gradient = gradient.contiguous()
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:3]]
    # One partial sum per unit of work: the total does not depend on the number of threads.
    norms = torch.zeros(layer.rows * layer.kv_heads, 2, layer.head_dim)
    tensors = [result, normalizer, gradient, *gradients, norms]
    kernels().attention_gradients(ctypes.byref(layer), *(t.data_ptr() for t in tensors))
    return *gradients, norms.sum(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS], *output)
    ctx.settings = inputs[_TENSORS:]


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, result, normalizer = ctx.saved_tensors
    *gradients, norms = torch.ops.mini_llm.attention_gradients(gradient, result, normalizer, *inputs, *ctx.settings)
    weights = zip(inputs[3:5], norms.unbind(), strict=True)
    norm_gradients = [None if weight is None else norm.to(weight.dtype) for weight, norm in weights]
    return *gradients, *norm_gradients, *[None] * (_TENSORS - 5 + len(ctx.settings))


def _shapes(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    rows, length, width = query.shape
    normalizer = query.new_empty(rows, width // others[-4], length, dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), normalizer


def _gradient_shapes(gradient: Tensor, result: Tensor, normalizer: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:3]]
    return *gradients, gradient.new_empty(2, inputs[-4], dtype=torch.float32)


_LIBRARY.impl("attention", _attention, "CPU")
_LIBRARY.impl("attention_gradients", _gradients, "CPU")
torch.library.register_fake("mini_llm::attention", _shapes, lib=_LIBRARY)
torch.library.register_fake("mini_llm::attention_gradients", _gradient_shapes, lib=_LIBRARY)
torch.library.register_autograd("mini_llm::attention", _backward, setup_context=_keep, lib=_LIBRARY)
