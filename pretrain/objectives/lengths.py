"""The number and lengths of text pairs, which the planner uses to choose sizes."""

from dataclasses import dataclass


@dataclass
class PairLengths:
    """Number of training pairs and their lengths in tokens."""

    count: int
    longest: int
    mean_source: float
    mean_target: float
