"""Names of the documents that a step reads, for any rank, as a pure function of the step."""

from dataclasses import replace

import numpy as np

from mini_llm.engine.batch import BatchSplit
from mini_llm.engine.spikes import Documents

from .data import Data, Objective
from .objectives.causal import CausalObjective
from .objectives.pairs import PairsObjective

NAMED_CHARACTERS = 40


def make_documents(
    data: Data, objective: Objective, clm_objective: CausalObjective | None, split: BatchSplit
) -> Documents:
    """documents(step, rank, clm): names such as "reviews.csv row 12", in the order of the batch."""

    def documents(step: int, rank: int, clm: bool) -> list[str]:
        current, rank_split = clm_objective if clm else objective, replace(split, rank=rank)
        if isinstance(current, PairsObjective):
            return [pair_name(data, i) for rows in current.rows(step, rank_split) for i in rows]
        windows = current.windows
        starts = np.array(windows.starts(step, split.global_batch_size))
        width = windows.length + windows.extra
        ours = [int(start) for part in rank_split.micro_batches(starts) for start in part]
        return [str(origin) for start in ours for origin in windows.store.origins(start, width)]

    return documents


def pair_name(data: Data, index: int) -> str:
    """The row of a pair, or the beginning of its target if the pair was made from running text."""
    pair = data.pairs.train[index]
    return pair.origin or f"'{pair.target[:NAMED_CHARACTERS]}'"
