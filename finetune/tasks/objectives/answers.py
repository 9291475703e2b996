"""Cross-entropy of where an answer starts and where it ends (Devlin et al. 2018, section 4.2)."""

from torch import Tensor
from torch.nn import functional as F


class AnswerLoss:
    """Logits (B, T, 2) against positions of the first and the last token (B, 2)."""

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum")

    def count(self, labels: Tensor) -> float:
        return labels.numel()
