"""Loss for ordered classes: cross-entropy plus the ranked probability score (Epstein 1969).

Both are proper scoring rules, so the probabilities stay honest. Cross-entropy alone treats every mistake alike; the
ranked probability score grows with the distance between the probable classes and the true one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class RankLoss:
    """Logits (B, K) of K ordered classes against class ids (B,)."""

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        below = logits.softmax(-1).cumsum(-1)  # B K: probability of this class or a lower one
        truth = (labels[:, None] <= torch.arange(logits.size(-1), device=labels.device)).to(below.dtype)
        return F.cross_entropy(logits, labels, reduction="sum") + (below - truth).square().sum()

    def count(self, labels: Tensor) -> float:
        return labels.numel()
