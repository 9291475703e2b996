"""Several tests at once."""

from collections.abc import Sequence

import numpy as np


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number (Holm 1979): the chance that any test of a true null hypothesis is
    below a level then stays below that level, whatever the dependence between the tests."""
    found = list(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(found) - rank)))
        found[index] = largest
    return found
