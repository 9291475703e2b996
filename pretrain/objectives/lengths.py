"""What the planner needs to know of pairs of texts."""

from dataclasses import dataclass


@dataclass
class PairLengths:
    """Pairs of texts to learn from: how many, and their lengths in tokens."""

    count: int
    longest: int
    mean_source: float
    mean_target: float
