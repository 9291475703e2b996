"""Loss spikes and non-finite steps: both are logged and recorded with the documents of the batch.

Spikes are listed in tables/spikes.json, skipped steps in tables/skipped.json.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from mini_llm.engine.errors import NonFiniteError
from mini_llm.engine.step import TrainContext
from mini_llm.engine.tracking.tracker import Tracker

# The run ends after this many consecutive steps with a non-finite loss or gradient.
MAX_NON_FINITE = 10
# A loss is a spike if it is this many deviations above the median of the last losses. The deviation is 1.4826 times the
# median absolute deviation, which estimates the standard deviation of a normal distribution (Rousseeuw and Croux 1993),
# but at least 1 % of the median.
DEVIATIONS, SMALLEST_DEVIATION, NORMAL = 8.0, 0.01, 1.4826
WINDOW, ENOUGH_LOSSES = 64, 16
SHOWN, RECORDED = 5, 100

# documents(step, rank, clm): names of the documents in that rank's batch of a step, counted from 0; clm is True for a
# step of CLM warm-up, which has batches of its own.
Documents = Callable[[int, int, bool], list[str]]


@dataclass
class SpikeMonitor:
    """Finds loss spikes and counts non-finite steps.

    The fields are saved in checkpoints and equal on every rank, so a resumed run counts and reports the same.
    """

    # Consecutive skipped steps, and all of them.
    bad: int = 0
    skipped: int = 0
    # The last losses, of one objective: whether that is CLM warm-up.
    losses: list[float] = field(default_factory=list)
    clm: bool = False
    rows: dict[str, list[list[Any]]] = field(default_factory=lambda: {"skipped": [], "spikes": []})

    def check(
        self,
        step: int,
        loss: float,
        norm: float,
        clm: bool,
        context: TrainContext,
        tracker: Tracker,
        documents: Documents | None,
        log: Callable[[str], None],
    ) -> None:
        """Check the loss and gradient norm of `step`, counted from 1. Collective if they are not finite.

        Raises NonFiniteError after MAX_NON_FINITE such steps in a row.
        """
        every_rank = list(range(context.accelerator.num_processes))
        if math.isfinite(loss) and (math.isfinite(norm) or context.overflow_is_expected):
            self.bad = 0
            if clm != self.clm:
                # The losses of two objectives do not compare: that of the next token is far below that of a masked one.
                self.clm, self.losses = clm, []
            limit = spike_limit(self.losses)
            self.losses = [*self.losses, loss][-WINDOW:]
            if loss > limit:
                names = document_names(documents, step, clm, every_rank)
                log(f"step {step}: loss {loss:.4g} is a spike (above {limit:.4g}); batch: {shorten(names)}")
                self._record("spikes", tracker, [step, loss, limit], names)
            return
        self.bad += 1
        self.skipped += 1
        ranks = bad_ranks(context)
        names = document_names(documents, step, clm, ranks or every_rank)
        where = f" on rank {', '.join(map(str, ranks))}" if ranks and len(every_rank) > 1 else ""
        log(f"step {step}: loss {loss}, gradient norm {norm}{where}: step skipped; batch: {shorten(names)}")
        self._record("skipped", tracker, [step, str(loss), str(norm)], names)
        tracker.log(step, {"train/skipped_steps": self.skipped})
        if self.bad >= MAX_NON_FINITE:
            message = f"loss or gradient was not finite for {self.bad} steps in a row, up to step {step}"
            tracker.alert("Training stopped: not finite", message)
            raise NonFiniteError(
                f"{message}; the last batch: {shorten(names)}. tables/skipped.json lists all of them. "
                "Lower optim.lr and optim.muon_lr, or set runtime.precision=fp32"
            )

    def _record(self, table: str, tracker: Tracker, values: list[Any], names: list[str]) -> None:
        rows = self.rows[table]
        if len(rows) >= RECORDED:
            return
        if not rows:
            tracker.alert(f"Step {values[0]}: {table}", f"loss {values[1]}; batch: {shorten(names)}")
        rows.append([*values, shorten(names, RECORDED)])
        third = {"skipped": "gradient norm", "spikes": "limit"}[table]
        tracker.table(table, ["step", "loss", third, "documents"], rows, values[0])


def spike_limit(losses: list[float]) -> float:
    """The loss above which the next step is a spike; infinite with fewer than ENOUGH_LOSSES losses."""
    if len(losses) < ENOUGH_LOSSES:
        return math.inf
    median = float(np.median(losses))
    deviation = NORMAL * float(np.median(np.abs(np.asarray(losses) - median)))
    return median + DEVIATIONS * max(deviation, SMALLEST_DEVIATION * abs(median))


def bad_ranks(context: TrainContext) -> list[int]:
    """Ranks whose loss is not finite; empty if only a gradient is not. Collective."""
    mine = not bool(torch.isfinite(context.losses).all())
    flags = gather_object([mine]) if context.accelerator.num_processes > 1 else [mine]
    return [rank for rank, flag in enumerate(flags) if flag]


def document_names(documents: Documents | None, step: int, clm: bool, ranks: list[int]) -> list[str]:
    """Names of the documents that these ranks read in `step`, counted from 1; each name once."""
    if documents is None:
        return []
    return list(dict.fromkeys(name for rank in ranks for name in documents(step - 1, rank, clm)))


def shorten(names: list[str], most: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "unknown"
