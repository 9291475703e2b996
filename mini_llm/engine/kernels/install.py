"""The operations of a model in training on a CPU: the kernels of cpp/ for inputs they support, else PyTorch's.

This is the only place where a model gets its kernels. Each function below replaces the one of the same name in
mini_llm/model/operations.py and says for which inputs the kernel runs.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.engine.kernels.attention import fused_attention, longest_in_kernel, supports_head
from mini_llm.engine.kernels.cross_entropy import losses_and_hits
from mini_llm.engine.kernels.linear import SMALL, GatedLinear, Linear
from mini_llm.engine.kernels.load import LANES, NUMBERS
from mini_llm.engine.kernels.pointwise import Norm
from mini_llm.engine.settings import Attention
from mini_llm.model.activations import Activation, gated
from mini_llm.model.norms import RMSNorm
from mini_llm.model.operations import PYTORCH, Operations, product_dtype, use


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Kernel: weights of SMALL elements or more, outside of torch.compile."""
    if weight.numel() < SMALL or torch.compiler.is_compiling():
        return PYTORCH.linear(x, weight, bias)
    return Linear.apply(x.to(product_dtype(x)), weight, bias)


def gated_linear(gate: Tensor, up: Tensor, act: Activation, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Kernel: SiLU in fp32 or bf16, outside of torch.compile, which fuses elementwise operations itself."""
    if act is not F.silu or gate.dtype not in NUMBERS or torch.compiler.is_compiling():
        return linear(gated(act, gate, up), weight, bias)
    return GatedLinear.apply(gate, up, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Kernel: fp32 to fp32 or bf16, whole vectors of channels, outside of torch.compile."""
    known = x.dtype == torch.float32 and dtype in NUMBERS and weight.size(0) % LANES == 0
    if not known or torch.compiler.is_compiling():
        return PYTORCH.rms_norm(x, weight, eps, dtype)
    return Norm.apply(x, weight, eps, dtype)


def attention(query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
    """Kernel: lengths and types where it is expected to be faster, and what attention_in_kernel supports."""
    run = PYTORCH.attention if query.size(1) > longest_in_kernel(query.dtype) else attention_in_kernel
    return run(query, *arguments)


def attention_in_kernel(
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
    keep_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Kernel: fp32 and bf16, RMSNorm or no norm, one mask of booleans for all heads. It never stores the attention
    weights. torch.compile calls it as one operator."""
    norms = isinstance(q_norm, RMSNorm | nn.Identity) and supports_head(head_dim)
    masked = mask is None or (mask.dtype == torch.bool and mask.size(1) == 1)
    if keep_weights or not norms or not masked or query.dtype not in NUMBERS:
        return PYTORCH.attention(
            query, key, value, q_norm, k_norm, rotary, mask, is_causal, scale, head_dim, keep_weights
        )
    return fused_attention(query, key, value, q_norm, k_norm, rotary, mask, is_causal, scale, head_dim), None


def cross_entropy_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel: fp32 and bf16. The gradient overwrites the logits."""
    if logits.dtype not in NUMBERS:
        return PYTORCH.cross_entropy_and_gradient(logits, labels)
    logits = logits.contiguous()
    losses, _ = losses_and_hits(logits, labels, gradient=logits)
    return losses.sum(), logits


def cross_entropy_and_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel: fp32 and bf16."""
    if logits.dtype not in NUMBERS:
        return PYTORCH.cross_entropy_and_hits(logits, labels)
    losses, hits = losses_and_hits(logits.flatten(0, -2).contiguous(), labels.flatten())
    return losses.double().sum(), hits.sum()


CPU = Operations(
    linear=linear,
    gated_linear=gated_linear,
    rms_norm=rms_norm,
    attention=attention,
    cross_entropy_and_gradient=cross_entropy_and_gradient,
    cross_entropy_and_hits=cross_entropy_and_hits,
)


# By the setting runtime.attention.
BY_ATTENTION: dict[Attention, Operations] = {
    "auto": CPU,
    "kernel": replace(CPU, attention=attention_in_kernel),
    "pytorch": replace(CPU, attention=PYTORCH.attention),
}


def use_kernels(model: nn.Module, attention: Attention = "auto") -> None:
    """Let `model` train with the CPU kernels. Only where has_kernels(device)."""
    use(model, BY_ATTENTION[attention])
