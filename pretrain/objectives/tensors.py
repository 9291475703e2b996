"""Arrays as the tensors of a batch."""

import numpy as np
import torch

from mini_llm.engine.batch import Batch


def to_tensors(**arrays: np.ndarray) -> Batch:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
