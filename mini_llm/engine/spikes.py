"""Steps whose numbers went wrong: those left out because they were not finite, and spikes of the loss.

Both are said in the log and recorded with the documents of the batch, in tables/skipped.json and tables/spikes.json.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from mini_llm.engine.errors import NonFiniteError
from mini_llm.engine.run.tracker import Tracker
from mini_llm.engine.step import Training

# Consecutive steps with a non-finite loss or gradient after which the run gives up.
MAX_NON_FINITE = 10
# A spike is this many deviations above the median of the last losses. A deviation is 1.4826 times the median absolute
# one, the standard deviation of a normal distribution (Rousseeuw and Croux 1993), and at least 1 % of the loss.
DEVIATIONS, SMALLEST_DEVIATION, NORMAL = 8.0, 0.01, 1.4826
WINDOW, ENOUGH_LOSSES = 64, 16
SHOWN, RECORDED = 5, 100

# documents(step, rank, early): names of the documents in each micro-batch of that rank.
Documents = Callable[[int, int, bool], list[list[str]]]


@dataclass
class Anomalies:
    """What a checkpoint remembers of them, the same on every rank: resuming changes neither counts nor flags."""

    # Steps in a row that were left out, and all of them.
    bad: int = 0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    rows: dict[str, list[list[Any]]] = field(default_factory=lambda: {"skipped": [], "spikes": []})

    def check(
        self,
        step: int,
        loss: float,
        norm: float,
        early: bool,
        training: Training,
        tracker: Tracker,
        documents: Documents | None,
        say: Callable[[str], None],
    ) -> None:
        """Judge what step number `step` (the first is 1) gave; collective where it was not finite.

        Raises NonFiniteError after MAX_NON_FINITE such steps in a row.
        """
        if math.isfinite(loss) and (math.isfinite(norm) or training.overflow_is_expected):
            self.bad = 0
            limit = spike_limit(self.losses)
            self.losses = [*self.losses, loss][-WINDOW:]
            if loss > limit:
                names = named(documents, step, early, list(range(training.accelerator.num_processes)))
                say(f"step {step}: loss {loss:.4g} is a spike (above {limit:.4g}); batch: {shown(names)}")
                self._record("spikes", tracker, [step, loss, limit], names)
            return
        self.bad += 1
        self.skipped += 1
        where = bad_ranks(training)
        names = named(documents, step, early, where or list(range(training.accelerator.num_processes)))
        origin = f" on rank {', '.join(map(str, where))}" if where and training.accelerator.num_processes > 1 else ""
        say(f"step {step}: loss {loss}, gradient norm {norm}{origin}: step left out; batch: {shown(names)}")
        self._record("skipped", tracker, [step, str(loss), str(norm)], names)
        tracker.log(step, {"train/skipped_steps": self.skipped})
        if self.bad >= MAX_NON_FINITE:
            message = f"loss or gradient was not finite for {self.bad} steps, up to step {step}"
            tracker.alert("Training stopped: not finite", message)
            raise NonFiniteError(
                f"{message}; the last batch: {shown(names)}. All are in tables/skipped.json. "
                "Lower optim.lr and optim.muon_lr, or use runtime.precision=fp32"
            )

    def _record(self, table: str, tracker: Tracker, figures: list[Any], names: list[str]) -> None:
        if len(self.rows[table]) >= RECORDED:
            return
        if not self.rows[table]:
            tracker.alert(f"Step {figures[0]}: {table}", f"loss {figures[1]}; batch: {shown(names)}")
        self.rows[table].append([*figures, shown(names, RECORDED)])
        second = {"skipped": "gradient norm", "spikes": "limit"}[table]
        tracker.table(table, ["step", "loss", second, "documents"], self.rows[table], figures[0])


def spike_limit(losses: list[float]) -> float:
    """The loss above which a step is a spike after these, infinite while they are few."""
    if len(losses) < ENOUGH_LOSSES:
        return math.inf
    median = float(np.median(losses))
    deviation = NORMAL * float(np.median(np.abs(np.asarray(losses) - median)))
    return median + DEVIATIONS * max(deviation, SMALLEST_DEVIATION * abs(median))


def bad_ranks(training: Training) -> list[int]:
    """Ranks on which a loss was not finite; none when only a gradient was not. Collective."""
    mine = not bool(torch.isfinite(training.losses).all())
    flags = gather_object([mine]) if training.accelerator.num_processes > 1 else [mine]
    return [rank for rank, flag in enumerate(flags) if flag]


def named(documents: Documents | None, step: int, early: bool, ranks: list[int]) -> list[str]:
    """Names of the documents that these ranks read in step number `step`, each once."""
    if documents is None:
        return []
    # Batches count steps from 0.
    parts = [names for rank in ranks for names in documents(step - 1, rank, early)]
    return list(dict.fromkeys(name for part in parts for name in part))


def shown(names: list[str], most: int = SHOWN) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "unknown"
