"""Load pairs of texts (source, target) from tables or from the restore task, and hold some out for validation."""

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.paths import find_files, is_hub_name, saved_dataset
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import iter_rows
from mini_llm.engine.errors import DataError

from .config import PairsConfig
from .restore import restore_pairs

# Held-out pairs in the validation loss, at most: enough to compare evaluations, and fast.
MOST_HELD_OUT = 2000
SHOWN = 5  # row numbers listed in an error


class Pair(NamedTuple):
    """A source text and the target text to predict from it."""

    source: str
    target: str
    origin: str = ""  # table and row, if the pair comes from a table


@dataclass
class TextPairs:
    """Pairs for training, validation and final scores (None: scores use `validation`), with notes."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair] | None = None
    notes: list[str] = field(default_factory=list)


def load_pairs(config: PairsConfig, corpus: CorpusConfig, seed: int) -> TextPairs:
    """Load the pairs of a table, or of the restore task on the corpus.

    Raises DataError for a missing column, rows without source or target, too few pairs, or scored data that is also
    training data.
    """
    if config.path is None:
        train, validation = ([Pair(*pair) for pair in restore_pairs(corpus, part)] for part in ("train", "validation"))
        known = {pair.target for pair in train}
        validation = [pair for pair in validation if pair.target not in known][:MOST_HELD_OUT]
        note = f"restore: {len(train):,} sentences for training, {len(validation):,} others held out"
        return TextPairs(train, validation, None, [note])
    notes: list[str] = []
    train = read_pairs(config, config.path, config.split, notes)
    test, validation = (read_more(config, part, notes) for part in ("test", "validation"))
    if validation is None:
        train, validation = set_aside(train, config.validation_fraction, seed)
        notes.append(f"{len(validation):,} of {len(validation) + len(train):,} pairs held out for validation")
    if not train or not validation:
        raise DataError(
            f"{config.path}: {len(train) + len(validation)} pairs with different sources are too few to hold some out "
            "for validation. Add pairs, or set pairs.validation=FILE"
        )
    sources = {pair.source for pair in train}
    shared = sum(pair.source in sources for pair in test or validation)
    if shared:
        notes.append(f"{shared:,} of {len(test or validation):,} scored sources are also in the training data")
    return TextPairs(train, validation[:MOST_HELD_OUT], test, notes)


def read_more(config: PairsConfig, part: str, notes: list[str]) -> list[Pair] | None:
    """Read the validation or test pairs, or return None if not given. Raises DataError if they are training data."""
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
        raise DataError(
            f"{path}: the {part} pairs are also the training pairs, so scores would be meaningless. Name other data"
        )
    return read_pairs(config, path, split, notes)


def read_pairs(config: PairsConfig, path: str, split: str, notes: list[str]) -> list[Pair]:
    """Read all pairs of one table. Raises DataError naming rows without source or target."""
    pairs, missing, number = [], [], 0
    report = ReadReport(option="pairs.encoding")
    columns = [config.source, config.target]
    for number, row in enumerate(iter_rows(path, split, columns, report=report, encoding=config.encoding), start=1):
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
    if report.replaced_bytes:
        notes.append(
            f"{path}: {report.replaced_bytes:,} bytes that are not valid in its encoding were replaced by U+FFFD. "
            f"{report.advice()}"
        )
    notes += report.notes
    if not pairs:
        raise DataError(f"{path}: no pairs. It needs columns '{config.source}' and '{config.target}'")
    return pairs


def set_aside(pairs: list[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Split into (training, validation) in the order of `pairs`; depends only on the sources and the seed."""

    def key(source: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{source}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    sources = sorted({pair.source for pair in pairs}, key=key)
    chosen = set(sources[: min(max(1, round(fraction * len(sources))), MOST_HELD_OUT, len(sources) - 1)])
    return [p for p in pairs if p.source not in chosen], [p for p in pairs if p.source in chosen]
