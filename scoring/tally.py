"""Sums by unit of text (documents, or blocks of a few long documents), and scores with intervals from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mini_llm.stages import load

BINS = 15
BLOCK_BYTES = 1024
FEW_DOCUMENTS = 20
Interval = tuple[float, float]


@dataclass
class Tally:
    """What was summed over the tokens of a file, by unit.

    `unit` names what a bootstrap resamples: "documents", or "blocks" of about 1 KiB where there are fewer than 20
    documents. rows (units, 3): nats, tokens, bytes. gaps (units, BINS): sum of confidence - correctness by bin of
    confidence. Positions are powers of two of the number of tokens before the predicted one.
    """

    unit: str = "documents"
    documents: int = 0
    correct: int = 0
    rows: list[np.ndarray] = field(default_factory=list)
    gaps: list[np.ndarray] = field(default_factory=list)
    position_nats: np.ndarray = field(default_factory=lambda: np.zeros(32))
    position_tokens: np.ndarray = field(default_factory=lambda: np.zeros(32))

    def add(
        self,
        nats: np.ndarray,
        confidence: np.ndarray,
        correct: np.ndarray,
        size: int,
        context: np.ndarray | None = None,
        units: np.ndarray | None = None,
    ) -> None:
        """Add the tokens of a document of `size` bytes. `units`: the unit in the document of each token, from 0."""
        self.documents += 1
        self.correct += int(correct.sum())
        units = np.zeros(len(nats), dtype=np.int64) if units is None else units
        count = int(units.max(initial=0)) + 1
        # The bytes of a document are those of its blocks, of equal size.
        sizes = np.full(count, size / count)
        sums = np.bincount(units, nats, count), np.bincount(units, minlength=count), sizes
        self.rows.append(np.column_stack(sums))
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        gaps = np.bincount(units * BINS + bins, confidence - correct, count * BINS)
        self.gaps.append(gaps.reshape(count, BINS))
        if context is not None:
            buckets = np.log2(context).astype(int)
            self.position_nats += np.bincount(buckets, nats, 32)
            self.position_tokens += np.bincount(buckets, minlength=32)

    def units(self) -> np.ndarray:
        """Return (units, 3): nats, tokens and bytes of each."""
        return np.concatenate(self.rows)

    def scores(self, seed: int, per_byte: bool = True) -> dict[str, Any]:
        """Return loss (nats per token), perplexity, bits per byte, accuracy and ECE, with 95 % intervals as NAME_low
        and NAME_high."""
        units, gaps = self.units(), np.concatenate(self.gaps)
        nats, tokens, size = units.sum(0)
        found: dict[str, Any] = {"documents": self.documents, "tokens": int(tokens)}
        found |= {"bytes": int(size)} if per_byte else {}
        loss = ratio_interval(units[:, 0], units[:, 1], seed)
        found |= {"loss": nats / tokens} | ends_of("loss", loss)
        found |= {"perplexity": float(np.exp(nats / tokens))} | ends_of("perplexity", np.exp(loss))
        if per_byte:
            bits = np.array(ratio_interval(units[:, 0], units[:, 2], seed)) / np.log(2)
            found |= {"bits_per_byte": nats / size / np.log(2)} | ends_of("bits_per_byte", bits)
        found["accuracy"] = self.correct / tokens
        found |= {"ece": float(np.abs(gaps.sum(0)).sum() / tokens)} | ends_of("ece", ece_interval(gaps, units, seed))
        return found | {"resampled": self.unit, "units": len(units)}

    def positions(self) -> list[dict[str, Any]]:
        """Return the mean loss by number of tokens before the predicted one: 1, 2 to 3, 4 to 7, ..."""
        return [
            {"from": 2**k, "to": 2 ** (k + 1) - 1, "tokens": int(count), "loss": float(nats / count)}
            for k, (nats, count) in enumerate(zip(self.position_nats, self.position_tokens, strict=True))
            if count
        ]


def blocks(ends: np.ndarray, size: int) -> np.ndarray:
    """Return the block of each token of a document of `size` bytes, from where the tokens end, in bytes."""
    count = max(1, size // BLOCK_BYTES)
    return np.minimum(np.maximum(ends - 1, 0) * count // max(size, 1), count - 1).astype(np.int64)


def total(tallies: Sequence[Tally]) -> Tally:
    """Return the tally of all files together."""
    whole = Tally(" and ".join(sorted({tally.unit for tally in tallies})))
    for tally in tallies:
        whole.documents, whole.correct = whole.documents + tally.documents, whole.correct + tally.correct
        whole.rows += tally.rows
        whole.gaps += tally.gaps
        whole.position_nats = whole.position_nats + tally.position_nats
        whole.position_tokens = whole.position_tokens + tally.position_tokens
    return whole


def ends_of(name: str, interval: Any) -> dict[str, float]:
    low, high = interval
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def ratio_interval(above: np.ndarray, below: np.ndarray, seed: int) -> Interval:
    """Return the 95 % interval (BCa, Efron 1987) of sum(above) / sum(below) when units are resampled."""
    intervals = load("finetune", "scores.intervals")
    estimate = above.sum() / below.sum()
    if len(above) < 2:
        return float(estimate), float(estimate)
    means = intervals.resampled_means(np.column_stack([above, below]), seed)
    left_out = (above.sum() - above) / np.maximum(below.sum() - below, 1e-12)
    return intervals.bca(estimate, means[:, 0] / np.maximum(means[:, 1], 1e-12), left_out)


def ece_interval(gaps: np.ndarray, units: np.ndarray, seed: int) -> Interval:
    """Return the 95 % interval of the expected calibration error when units are resampled."""
    intervals = load("finetune", "scores.intervals")
    parts = gaps.sum(0) / units[:, 1].sum()
    if len(gaps) < 2:
        return float(np.abs(parts).sum()), float(np.abs(parts).sum())
    means = intervals.resampled_means(np.column_stack([gaps, units[:, 1]]), seed)
    return intervals.absolute_sum_interval(parts, means[:, :-1] / np.maximum(means[:, -1:], 1e-12))
