"""A vector per text: the mean of a model's last hidden states."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from .subject import Subject

BATCH = 32


@torch.inference_mode()
def embed(subject: Subject, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the mean hidden state of the first window of each text, (texts, C) in float32."""
    before, after = subject.frame
    room = subject.context - len(before) - len(after)
    trunk: Any = subject.model.trunk
    trunk = trunk.encoder if subject.model.config.is_encoder_decoder else trunk
    rows = [[*before, *row[:room], *after] or [0] for row in ids]
    order = iter(sorted(range(len(rows)), key=lambda i: len(rows[i])))
    found = np.zeros((len(rows), subject.model.config.hidden_size), dtype=np.float32)
    while chosen := list(islice(order, BATCH)):
        longest = len(rows[chosen[-1]])
        batch = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask = torch.zeros_like(batch)
        for i, row in enumerate(chosen):
            batch[i, : len(rows[row])], mask[i, : len(rows[row])] = torch.tensor(rows[row]), 1
        hidden = trunk(batch.to(subject.device), mask.to(subject.device)).float()  # B T C
        weights = mask.to(subject.device)[..., None]
        found[chosen] = ((hidden * weights).sum(1) / weights.sum(1)).cpu().numpy()
    return found
