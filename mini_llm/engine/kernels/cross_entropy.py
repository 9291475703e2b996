"""Cross-entropy on a CPU in one pass over the logits, with its gradient or without: cpp/cross_entropy.h."""

import torch
from torch import Tensor

from mini_llm.engine.batch import IGNORE_INDEX
from mini_llm.engine.kernels.load import load_kernels


def losses_and_hits(
    logits: Tensor, labels: Tensor, gradient: Tensor | None = None, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats (N,) of contiguous logits (N, V), fp32 or bf16, against labels (N,), and where the label's
    logit is the largest (N,). `gradient` (N, V) is filled with factor * (softmax - onehot); it may be the
    logits themselves.

    Raises IndexError for a label that is neither in the vocabulary nor IGNORE_INDEX.
    """
    if ((labels >= logits.size(1)) | ((labels < 0) & (labels != IGNORE_INDEX))).any():
        raise IndexError(f"a label lies outside the vocabulary of {logits.size(1)}")
    labels, losses = labels.long().contiguous(), torch.empty(len(labels))
    hits = torch.empty(len(labels), dtype=torch.bool)
    if gradient is not None:
        # Of logits in whose place it lies, autograd has nothing any more.
        torch.autograd.graph.increment_version(gradient)
    places = [None if t is None else t.data_ptr() for t in (logits, labels, losses, hits, gradient)]
    in_bf16 = logits.dtype == torch.bfloat16
    load_kernels().cross_entropy(*logits.shape, *places, factor, in_bf16, torch.get_num_threads())
    return losses, hits
