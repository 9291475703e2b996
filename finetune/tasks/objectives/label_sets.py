"""Binary cross-entropy of every label of a row, as transformers' multi_label_classification."""

from torch import Tensor
from torch.nn import functional as F


class LabelSetLoss:
    """Logits (B, L) against 0 or 1 (B, L); every label counts."""

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")

    def count(self, labels: Tensor) -> float:
        return labels.numel()
