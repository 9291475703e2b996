"""Pairs of texts, (source, target): read from tables, set aside, encoded, and batched for an encoder-decoder."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from corpus.config import CorpusConfig
from corpus.paths import find_files, is_hub_name, saved_dataset
from corpus.tables import iter_rows
from engine.batches import LengthBatches, ordered_batches
from engine.errors import DataError
from engine.loss import IGNORE_INDEX, Batch
from engine.runtime import Share
from pretrain.config import PairsConfig
from pretrain.objectives import to_tensors
from pretrain.plan import PairLengths
from pretrain.restore import restore_pairs

# The loss is taken on at most so many held-out pairs: enough to tell two evaluations apart, and quick.
MOST_HELD_OUT = 2000
WIDTH_MULTIPLE = 8
SHOWN = 5


class Pair(NamedTuple):
    source: str
    target: str
    # The table and row, where it is of one.
    origin: str = ""


@dataclass
class TextPairs:
    """Pairs to learn from, to watch over training and to score (None: those of `validation`), and remarks."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair] | None = None
    notes: list[str] = field(default_factory=list)


def load_pairs(config: PairsConfig, corpus: CorpusConfig, seed: int) -> TextPairs:
    """The pairs of a table or of a task on the corpus.

    Raises DataError for a missing column, rows without source or target, too few pairs, scoring data that is also
    training data.
    """
    if config.path is None:
        train, validation = ([Pair(*pair) for pair in restore_pairs(corpus, part)] for part in ("train", "validation"))
        known = {pair.target for pair in train}
        validation = [pair for pair in validation if pair.target not in known][:MOST_HELD_OUT]
        note = f"restore: {len(train):,} sentences to learn from, {len(validation):,} others held out"
        return TextPairs(train, validation, None, [note])
    notes: list[str] = []
    train = read_pairs(config, config.path, config.split, notes)
    test, validation = (read_more(config, part, notes) for part in ("test", "validation"))
    if validation is None:
        train, validation = set_aside(train, config.validation_fraction, seed)
        notes.append(f"{len(validation):,} of {len(validation) + len(train):,} pairs set aside for validation")
    if not train or not validation:
        raise DataError(
            f"{config.path}: {len(train) + len(validation)} pairs with different sources are too few to set some aside "
            "for validation. Give more, or pairs.validation=FILE"
        )
    sources = {pair.source for pair in train}
    shared = sum(pair.source in sources for pair in test or validation)
    if shared:
        notes.append(f"{shared:,} of {len(test or validation):,} scored sources are also in the training data")
    return TextPairs(train, validation[:MOST_HELD_OUT], test, notes)


def read_more(config: PairsConfig, part: str, notes: list[str]) -> list[Pair] | None:
    """The validation or test pairs, where they are given. Raises DataError when they are training data too."""
    path, split = getattr(config, part), getattr(config, f"{part}_split")
    if path is None and split is None:
        return None
    path, split = path or config.path, split or config.split
    if any(is_hub_name(source) or saved_dataset(source) for source in (path, config.path)):
        same = (path, split) == (config.path, config.split)
    else:
        files = [{file.resolve() for file in find_files(source)} for source in (path, config.path)]
        same = bool(files[0] & files[1])
    if same:
        raise DataError(f"{path}: the {part} pairs are also the training pairs: scores would mean nothing. Give others")
    return read_pairs(config, path, split, notes)


def read_pairs(config: PairsConfig, path: str, split: str, notes: list[str]) -> list[Pair]:
    """All pairs of one table. Raises DataError naming rows without source or target."""
    pairs, missing, number = [], [], 0
    for number, row in enumerate(iter_rows(path, split, [config.source, config.target]), start=1):
        texts = [row[config.source], row[config.target]]
        if any(text is None or text != text or not str(text).strip() for text in texts):
            missing.append(number)
        else:
            pairs.append(Pair(*map(str, texts), f"{path} row {number:,}"))
    if missing and config.on_null == "stop":
        shown = ", ".join(map(str, missing[:SHOWN])) + (f" and {len(missing) - SHOWN:,} more" * (len(missing) > SHOWN))
        raise DataError(
            f"{path}: '{config.source}' or '{config.target}' is empty in {len(missing):,} of {number:,} rows: "
            f"{shown}. Fill or remove them, or skip such rows with pairs.on_null=skip"
        )
    if missing:
        notes.append(f"{path}: {len(missing):,} rows without source or target skipped")
    if not pairs:
        raise DataError(f"{path}: no pairs. It has to hold columns '{config.source}' and '{config.target}'")
    return pairs


def set_aside(pairs: list[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, validation) in the order of `pairs`; which sources go where depends on them and the seed alone."""

    def key(source: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{source}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    sources = sorted({pair.source for pair in pairs}, key=key)
    chosen = set(sources[: min(max(1, round(fraction * len(sources))), MOST_HELD_OUT, len(sources) - 1)])
    return [p for p in pairs if p.source not in chosen], [p for p in pairs if p.source in chosen]


@dataclass
class EncodedPairs:
    """Token ids of sources and targets, each ending in the end-of-sequence token."""

    sources: list[np.ndarray]
    targets: list[np.ndarray]

    @property
    def lengths(self) -> PairLengths:
        sources, targets = ([len(ids) for ids in side] for side in (self.sources, self.targets))
        longest = max(*sources, *targets)
        return PairLengths(len(sources), longest, float(np.mean(sources)), float(np.mean(targets)))


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any) -> EncodedPairs:
    """Raises DataError when the tokenizer has no end-of-sequence token."""
    if tokenizer.eos_id is None:
        raise DataError(f"{tokenizer.directory}: this tokenizer has no end token, and a target could never end")
    end = [tokenizer.eos_id]
    sides = (
        [np.concatenate([ids, end]) for ids in tokenizer.encode_batch([pair[side] for pair in pairs])]
        for side in (0, 1)
    )
    return EncodedPairs(*sides)


class PairsObjective:
    """Predict each token of the target from the source and the target so far (Sutskever et al. 2014).

    Rows of like length share a batch. What is longer than `length` is cut, its last token stays the end.
    """

    def __init__(self, pairs: EncodedPairs, length: int, seed: int, pad_id: int, start_id: int) -> None:
        self.pairs, self.length, self.seed, self.pad_id, self.start_id = pairs, length, seed, pad_id, start_id
        self.lengths = np.array([len(s) + len(t) for s, t in zip(pairs.sources, pairs.targets, strict=True)])
        self._order: LengthBatches | None = None

    def batches(self, step: int, share: Share) -> list[Batch]:
        return [self.collate(self.pairs, rows) for rows in self.rows(step, share)]

    def rows(self, step: int, share: Share) -> list[np.ndarray]:
        """Indices of the pairs in each micro-batch of `share`."""
        if self._order is None or self._order.rank != share.rank:
            dealt = (share.ranks, share.rank, share.accumulation)
            self._order = LengthBatches(self.lengths, share.global_batch_size, self.seed, *dealt)
        return self._order.batch(step)

    def evaluation(self, pairs: EncodedPairs, rows: int) -> list[Batch]:
        """All of `pairs` once, the short ones first."""
        lengths = [len(s) + len(t) for s, t in zip(pairs.sources, pairs.targets, strict=True)]
        return [self.collate(pairs, chosen) for chosen in ordered_batches(lengths, rows)]

    def collate(self, pairs: EncodedPairs, rows: np.ndarray) -> Batch:
        """Tensors (B, S) and (B, T), padded on the right; labels of padding count nothing."""
        inputs, mask = pad([pairs.sources[i] for i in rows], self.pad_id, self.length)
        targets, real = pad([pairs.targets[i] for i in rows], self.pad_id, self.length)
        start = np.full((len(rows), 1), self.start_id)
        return to_tensors(
            input_ids=inputs,
            attention_mask=mask.astype(np.int64),
            decoder_input_ids=np.hstack([start, targets[:, :-1]]),
            labels=np.where(real, targets, IGNORE_INDEX),
        )


def pad(rows: list[np.ndarray], pad_id: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, whether real), both (B, T): T is the longest row, up to a multiple of 8 and never above `length`."""
    rows = [row if len(row) <= length else np.append(row[: length - 1], row[-1]) for row in rows]
    lengths = np.array([len(row) for row in rows])
    width = min(-(-int(lengths.max()) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, length)
    real = np.arange(width) < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.concatenate(rows)
    return ids, real
