"""Texts of different lengths as tensors; which ones make up a step is said by engine/batches.py."""

from typing import TYPE_CHECKING

import numpy as np

from engine.batches import LengthBatches, ordered_batches, plan_epoch

if TYPE_CHECKING:
    import torch

__all__ = ["LengthBatches", "collate", "ordered_batches", "plan_epoch"]

IGNORED_LABEL = -100


def collate(
    tokens: list[np.ndarray], labels: list[int] | np.ndarray | None, pad_id: int, max_length: int, multiple: int = 8
) -> "dict[str, torch.Tensor]":
    """Tensors `input_ids`, `attention_mask` (B, T) and `labels` (B,), int64, padded on the right.

    T is the longest row, up to a multiple of `multiple` (few shapes, aligned rows), and never above `max_length`, what
    the model takes. Without `labels` they are -100, which counts nothing. Raises ValueError for an empty or longer row.
    """
    import torch

    lengths = np.array([len(row) for row in tokens])
    if lengths.min() < 1 or lengths.max() > max_length:
        raise ValueError(f"rows of {lengths.min()} to {lengths.max()} tokens: 1 to {max_length} are possible")
    width = min(-(-int(lengths.max()) // multiple) * multiple, max_length)
    attention_mask = np.arange(width) < lengths[:, None]
    input_ids = np.full((len(tokens), width), pad_id, dtype=np.int64)
    input_ids[attention_mask] = np.concatenate(tokens)
    answers = np.full(len(tokens), IGNORED_LABEL) if labels is None else np.asarray(labels)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)),
        "labels": torch.from_numpy(answers.astype(np.int64)),
    }
