"""Which documents a step reads: names for the log, of any rank, as a pure function of the step."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mini_llm.engine.batch import Share

from .data import Data, Objective
from .objectives.causal import CausalObjective
from .objectives.pairs import PairsObjective

NAMED_CHARACTERS = 40


def make_documents(
    data: Data, objective: Objective, early: CausalObjective | None, share: Share
) -> Callable[[int, int, bool], list[list[str]]]:
    """documents(step, rank, early): names of the documents in each micro-batch, such as "reviews.csv row 12"."""

    def documents(step: int, rank: int, is_early: bool) -> list[list[str]]:
        read, of_rank = early if is_early else objective, replace(share, rank=rank)
        if isinstance(read, PairsObjective):
            return [[pair_name(data, i) for i in rows] for rows in read.rows(step, of_rank)]
        windows = read.windows
        starts = np.array(windows.starts(step, share.global_batch_size))
        width = windows.length + windows.extra
        return [
            [str(origin) for start in part for origin in windows.store.origins(int(start), width)]
            for part in of_rank.split(starts)
        ]

    return documents


def pair_name(data: Data, index: int) -> str:
    """The row of a pair; the beginning of its target where pairs are made from running text."""
    pair = data.pairs.train[index]
    return pair.origin or f"'{pair.target[:NAMED_CHARACTERS]}'"
