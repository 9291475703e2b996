"""Attention of one layer on a CPU in one operator, for training: cpp/attention.h.

Between a layer's projections there are some thirty operators, each over the whole activation; this is one, and keeps
nothing of them for the backward pass but queries, keys, values and result.
"""

import ctypes
import sys
from typing import Any

import torch
from torch import Tensor

from mini_llm.engine.kernels.load import LANES, load_kernels, number, pointer, size
from mini_llm.model import ModelConfig
from mini_llm.model.attention import Attention

# Of a head: the room that the source has.
MOST_CHANNELS = 512
# Positions up to which it is faster in fp32 than torch's kernel; in bf16 it is twice as fast at any length.
LONGEST_FP32 = 1024


class Layer(ctypes.Structure):
    """The structure of cpp/attention.h, field by field."""

    NUMBERS = "rows length heads kv_heads head_dim causal threads bf16 mask_row"
    POINTERS = "query_norm key_norm cosine sine mask query key value"
    _fields_ = (
        *((name, size) for name in NUMBERS.split()),
        *((name, number) for name in ("scale", "eps")),
        *((name, pointer) for name in POINTERS.split()),
    )


def in_one_operator(config: ModelConfig) -> bool:
    """Whether the kernel computes the self-attention of this architecture."""
    plain = config.norm == "rmsnorm" or not config.qk_norm
    return plain and config.position != "relative" and config.head_dim % LANES == 0 and config.head_dim <= MOST_CHANNELS


def longest_in_kernel(dtype: torch.dtype) -> int:
    """Positions up to which the kernel is the faster way, for activations of this type; 0: never."""
    if dtype == torch.float32:
        return LONGEST_FP32
    # With AMX torch's own products are the faster ones.
    fast = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return sys.maxsize if dtype == torch.bfloat16 and fast else 0


class AttentionKernel:
    """What mini_llm/model/attention.py calls in place of its own operators."""

    def takes(self, query: Tensor, mask: Tensor | None) -> bool:
        """Whether it computes queries (B, T, H * D) of this type and length under this mask (B or 1, 1, T, T)."""
        known = mask is None or (mask.dtype == torch.bool and mask.size(1) == 1)
        return known and query.device.type == "cpu" and query.size(1) <= longest_in_kernel(query.dtype)

    def __call__(
        self,
        attention: Attention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        is_causal: bool,
    ) -> Tensor:
        """query (B, T, H * D), key and value (B, T, K * D) before norm and rotation; the result (B, T, H * D)."""
        norms = attention.q_norm, attention.k_norm
        weights = [getattr(norm, "weight", None) for norm in norms]
        settings = attention.head_dim, attention.scale, getattr(norms[0], "eps", 0.0), is_causal
        return torch.ops.mini_llm.attention(query, key, value, *weights, *(rotary or (None, None)), mask, *settings)[0]


_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? query_norm, Tensor? key_norm, Tensor? cosine, Tensor? sine, "
    "Tensor? mask, int head_dim, float scale, float eps, bool causal"
)
_TENSORS = _INPUTS.count("Tensor")
# Not torch.library.custom_op, which imports the compiler: a second at the start of a run.
_LIBRARY = torch.library.Library("mini_llm", "DEF")
_LIBRARY.define(f"attention({_INPUTS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"attention_gradients(Tensor gradient, Tensor result, Tensor normalizer, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _layer(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Layer, list[Tensor | None]]:
    """The structure, and the tensors that it points into."""
    *tables, mask, head_dim, scale, eps, causal = others
    rows, length, width = query.shape
    kept = [None if t is None else t.float().contiguous() for t in tables]
    kept += [None if t is None else t.contiguous() for t in (mask, query, key, value)]
    mask_row = length * length if mask is not None and mask.size(0) > 1 else 0
    sizes = rows, length, width // head_dim, key.size(2) // head_dim, head_dim
    settings = causal, torch.get_num_threads(), query.dtype == torch.bfloat16, mask_row, scale, eps
    return Layer(*sizes, *settings, *(None if t is None else t.data_ptr() for t in kept)), kept


def _attention(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """The result, and the logarithm of each softmax's denominator (B, H, T)."""
    layer, _kept = _layer(query, *others)
    result = torch.empty(query.shape, dtype=query.dtype)
    normalizer = torch.empty(layer.rows, layer.heads, layer.length)
    load_kernels().attention(ctypes.byref(layer), result.data_ptr(), normalizer.data_ptr())
    return result, normalizer


def _gradients(gradient: Tensor, result: Tensor, normalizer: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Gradients of query, key, value, and of the norms of queries and keys (2, D)."""
    layer, kept = _layer(*inputs)
    gradient = gradient.contiguous()
    found = [torch.empty_like(t) for t in kept[-3:]]
    # A share for each unit of work, whoever does it: the sum is the same whatever the threads.
    norms = torch.zeros(layer.rows * layer.kv_heads, 2, layer.head_dim)
    tensors = [result, normalizer, gradient, *found, norms]
    load_kernels().attention_gradients(ctypes.byref(layer), *(t.data_ptr() for t in tensors))
    return *found, norms.sum(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS], *output)
    ctx.settings = inputs[_TENSORS:]


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, result, normalizer = ctx.saved_tensors
    *found, norms = torch.ops.mini_llm.attention_gradients(gradient, result, normalizer, *inputs, *ctx.settings)
    weights = zip(inputs[3:5], norms.unbind(), strict=True)
    for_norms = [None if weight is None else norm.to(weight.dtype) for weight, norm in weights]
    return *found, *for_norms, *[None] * (_TENSORS - 5 + len(ctx.settings))


def _shapes(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    rows, length, width = query.shape
    normalizer = query.new_empty(rows, width // others[-4], length, dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), normalizer


def _gradient_shapes(gradient: Tensor, result: Tensor, normalizer: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    found = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:3]]
    return *found, gradient.new_empty(2, inputs[-4], dtype=torch.float32)


_LIBRARY.impl("attention", _attention, "CPU")
_LIBRARY.impl("attention_gradients", _gradients, "CPU")
torch.library.register_fake("mini_llm::attention", _shapes, lib=_LIBRARY)
torch.library.register_fake("mini_llm::attention_gradients", _gradient_shapes, lib=_LIBRARY)
torch.library.register_autograd("mini_llm::attention", _backward, setup_context=_keep, lib=_LIBRARY)
