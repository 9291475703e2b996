"""Cross-entropy on a CPU in one pass over the logits, with or without its gradient: cpp/cross_entropy.h."""

import torch
from torch import Tensor

from mini_llm.engine.kernels.load import kernels
from mini_llm.model.operations import IGNORE_INDEX


def losses_and_hits(logits: Tensor, labels: Tensor, gradient: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(losses, hits) of contiguous logits (N, V), fp32 or bf16, against labels (N,).

    losses (N,) is the cross-entropy in nats, hits (N,) is true where the label has the largest logit. `gradient` (N, V)
    receives softmax - onehot; it may be the logits themselves.

    Raises IndexError for a label that is neither in the vocabulary nor IGNORE_INDEX.
    """
    if ((labels >= logits.size(1)) | ((labels < 0) & (labels != IGNORE_INDEX))).any():
        raise IndexError(f"a label lies outside the vocabulary of {logits.size(1)} tokens")
    labels, losses = labels.long().contiguous(), torch.empty(len(labels))
    hits = torch.empty(len(labels), dtype=torch.bool)
    if gradient is not None:
        # C++ writes behind autograd's back: tell it that the tensor changes.
        torch.autograd.graph.increment_version(gradient)
    places = [None if t is None else t.data_ptr() for t in (logits, labels, losses, hits, gradient)]
    in_bf16 = logits.dtype == torch.bfloat16
    kernels().cross_entropy(*logits.shape, *places, in_bf16, torch.get_num_threads())
    return losses, hits
