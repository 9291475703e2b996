"""Convert arrays to the tensors of a batch."""

import numpy as np
import torch

from mini_llm.engine.batch import Batch


def to_tensors(**arrays: np.ndarray) -> Batch:
    """Return {name: tensor} for named arrays."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
