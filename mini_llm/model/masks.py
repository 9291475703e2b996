"""Attention masks. B batch, T query positions, S key positions, H heads."""

import torch
from torch import Tensor


def self_attention_mask(
    positions: Tensor,
    keys: int,
    attention_mask: Tensor | None,
    window: int | None,
    causal: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, bool]:
    """(mask, is_causal) as operations.attend takes them. The mask is None where `is_causal` says everything.

    positions (T,) are those of the queries; the S = `keys` keys stand at 0, 1, ... attention_mask (B, S) is true or 1
    where a token is real. `window` limits what is visible: a decoder sees that many keys up to its own, an encoder that
    many on each side. `bias` (1, H, T, S) is added to the scores.
    """
    if attention_mask is None and window is None and bias is None:
        if not causal or len(positions) == 1:
            return None, False
        if len(positions) == keys:
            return None, True
    if attention_mask is not None and not causal and window is None and bias is None:
        # All queries see the same keys. A row of padding alone sees all of it: a softmax over no key would be NaN.
        real = attention_mask.bool()
        return (real | ~real.any(-1, keepdim=True))[:, None, None], False  # B 1 1 S
    distance = torch.arange(keys, device=positions.device) - positions[:, None]  # T S
    visible = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        visible = visible & (distance > -window if causal else distance.abs() <= window)
    visible = visible[None, None]  # 1 1 T S
    if attention_mask is not None:
        # A padding query sees itself: a softmax over no key at all would be NaN.
        visible = (visible & attention_mask[:, None, None, :].bool()) | (distance == 0)  # B 1 T S
    return visible if bias is None else bias.masked_fill(~visible, float("-inf")), False
