"""The operations that layers are built from, as functions of tensors: PyTorch's by default.

Modules call them through their attribute `ops`, and `use` gives all modules of a model another set. This is the one
place where faster implementations enter (mini_llm/engine/kernels/install.py has those for training on a CPU); the
modules do not know which implementation they run.

Shapes: B batch, T query positions, S key positions, C hidden_size, I intermediate_size, H heads, K key-value heads, D
head_dim, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.model.activations import Activation, gated
from mini_llm.model.positions import rotate

# Label of a position that does not count in the loss: PyTorch's default.
IGNORE_INDEX = -100
# On a CPU in bf16, scaled_dot_product_attention trains faster only with more keys than this. With fewer, two batched
# products and a softmax take half of its time (benchmarks/profile.py).
SHORT = 512


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products of x are computed: autocast's where it is enabled."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b: x (..., C), weight (O, C), bias (O,) -> (..., O)."""
    return F.linear(x, weight, bias)


def gated_linear(gate: Tensor, up: Tensor, act: Activation, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(act(gate) * up) W^T + b, the end of a gated MLP (Shazeer 2020): gate and up (..., I) -> (..., C)."""
    return linear(gated(act, gate, up), weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, as `dtype` (Zhang and Sennrich 2019)."""
    # Under autocast x may be bf16 while the weight is fp32. PyTorch has no fused kernel for mixed types.
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps).to(dtype)


def attention(
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
    """Self-attention between the projections: query (B, T, H*D), key and value (B, T, K*D) -> (B, T, H*D).

    `rotary` holds the cosines and sines (T, D) of positions.rotary_table. The other arguments and the second result
    are those of `attend`.
    """
    query = split_heads(query, head_dim, q_norm, rotary)  # B H T D
    key = split_heads(key, head_dim, k_norm, rotary)  # B K T D
    value = split_heads(value, head_dim)  # B K T D
    return attend(query, key, value, mask, is_causal, scale, keep_weights)


def split_heads(
    x: Tensor, head_dim: int, norm: nn.Module | None = None, rotary: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """(B, T, H*D) -> (B, H, T, D), each head normalized by `norm` and rotated by its position."""
    x = x.view(*x.shape[:2], -1, head_dim)  # B T H D
    x = (x if norm is None else norm(x)).transpose(1, 2)  # B H T D
    return x if rotary is None else rotate(x, rotary)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    keep_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """query (B, H, T, D) attends to key and value (B, K, S, D) -> (B, T, H*D), and the weights (B, H, T, S) if kept.

    `mask` (B or 1, H or 1, T or 1, S) is true where a key may be seen, or is added to the scores. K divides H: each
    key-value head serves H / K query heads (Ainslie et al. 2023).
    """
    # Norm and rotation may give fp32 under autocast while the value is bf16. Attention needs one type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    short = query.dtype == torch.bfloat16 and query.device.type == "cpu" and key.size(2) <= SHORT
    # Compiled (torch 2.13), explicit_attention after QK-norm gives NaN gradients of queries and keys in bf16 on a CPU.
    explicit = short and query.requires_grad and not torch.compiler.is_compiling()
    weights = None
    if keep_weights or explicit:
        y, weights = explicit_attention(query, key, value, mask, is_causal, scale)
    else:
        grouped = query.size(1) != key.size(1)
        y = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
        )  # B H T D
    return y.transpose(1, 2).flatten(2), weights if keep_weights else None


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(scale Q K^T + mask) V (Vaswani et al. 2017, equation 1), and the softmax: (B, H, T, D), (B, H, T, S).

    query (B, H, T, D); key and value (B, K, S, D). Equals scaled_dot_product_attention, which never stores the softmax.
    """
    repeats = query.size(1) // key.size(1)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)  # B H S D
    scores = (query * scale) @ key.mT  # B H T S
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()  # T S
    if mask is not None:
        # Adding -inf needs no backward pass over the scores, and in their own type no copy of them.
        scores += (torch.where(mask, 0.0, float("-inf")) if mask.dtype == torch.bool else mask).to(scores.dtype)
    weights = scores.softmax(-1)  # B H T S
    return weights @ value, weights


def cross_entropy_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats of logits (N, V) against labels (N,), and its gradient (N, V) in the logits' type.

    The gradient is softmax(logits) - onehot(labels); rows with label IGNORE_INDEX give 0. An implementation may
    overwrite the logits with it. The softmax is computed once, in fp32 or wider: rounded to bf16 first, 1 - p would
    lose its digits for probabilities p near 1.
    """
    counted = labels != IGNORE_INDEX  # N
    places = torch.arange(len(labels), device=labels.device), torch.where(counted, labels, 0)
    gradient = torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))  # N V
    likely = gradient[places]  # N
    losses = -likely.log()
    # The logarithm of a probability that underflowed is wrong; take it from the logits.
    if (vanished := likely < 1e-30).any():
        losses[vanished] = F.cross_entropy(logits[vanished].to(likely.dtype), places[1][vanished], reduction="none")
    gradient[places] = likely - 1
    if not counted.all():
        losses, gradient = losses.where(counted, 0.0), gradient.masked_fill_(~counted.unsqueeze(1), 0.0)
    return losses.sum(), gradient.to(logits.dtype)


def cross_entropy_and_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats (fp64) of logits (..., V) against labels (...), and how many labels have the largest
    logit of their position. Labels of IGNORE_INDEX count in neither."""
    hits = (logits.argmax(-1) == labels) & (labels != IGNORE_INDEX)
    loss = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    return loss.double(), hits.sum()


@dataclass(frozen=True)
class Operations:
    """One implementation of each operation; every field has the signature of the function of its name above.

    A replacement must compute the same up to rounding, and call PyTorch's version for inputs that it does not support.
    """

    linear: Callable[..., Tensor] = linear
    gated_linear: Callable[..., Tensor] = gated_linear
    rms_norm: Callable[..., Tensor] = rms_norm
    attention: Callable[..., tuple[Tensor, Tensor | None]] = attention
    cross_entropy_and_gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = cross_entropy_and_gradient
    cross_entropy_and_hits: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = cross_entropy_and_hits


PYTORCH = Operations()


def use(model: nn.Module, operations: Operations) -> None:
    """Let every module of `model` compute with `operations`."""
    for module in model.modules():
        if hasattr(module, "ops"):
            # nn.Module declares tensors and modules as its only attributes.
            module.ops = operations  # ty: ignore[invalid-assignment]
