"""Load pairs of texts (source, target) from tables or from the restore task, and hold some out for validation."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.parts import Source, find_parts, iter_source_rows, lacks_labels
from mini_llm.corpus.paths import find_files
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import Row
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
    parts = find_parts(config, "pairs")
    notes = list(parts["train"].notes)
    train = read_pairs(config, parts["train"], notes)
    test, validation = (read_more(config, parts.get(part), notes) for part in ("test", "validation"))
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


def training_text(config: PairsConfig, corpus: CorpusConfig) -> CorpusConfig:
    """The text to train a tokenizer on: config.corpus without the files that hold validation or test pairs."""
    text = config.corpus(corpus)
    files = find_parts(config, "pairs")["train"].files if config.path else None
    if files is None or files == find_files(config.path or ""):
        return text
    sources = [source.model_copy(update={"path": str(file)}) for file in files for source in text.sources]
    return text.model_copy(update={"sources": sources})


def read_more(config: PairsConfig, source: Source | None, notes: list[str]) -> list[Pair] | None:
    """Read the validation or test pairs; None if not given, or for a file taken by its name that has no targets."""
    if source is None:
        return None
    if lacks_labels(source, [config.source, config.target], config.target, config.encoding):
        notes.append(f"{source.path}: not used: it has no targets in '{config.target}'")
        return None
    return read_pairs(config, source, notes)


def read_pairs(config: PairsConfig, source: Source, notes: list[str]) -> list[Pair]:
    """Read all pairs of one source. Raises DataError naming rows without source or target."""
    pairs, missing, total, path = [], [], 0, source.path
    report = ReadReport(option="pairs.encoding")
    several = source.files is not None and len(source.files) > 1
    for file, number, row in iter_source(config, source, report):
        total += 1
        texts = [row[config.source], row[config.target]]
        if any(text is None or text != text or not str(text).strip() for text in texts):
            missing.append(f"{file} row {number}" if several else str(number))
        else:
            pairs.append(Pair(*map(str, texts), f"{file} row {number:,}"))
    if missing and config.on_null == "stop":
        shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN:,} more" * (len(missing) > SHOWN))
        raise DataError(
            f"{path}: '{config.source}' or '{config.target}' is empty in {len(missing):,} of {total:,} rows: "
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


def iter_source(config: PairsConfig, source: Source, report: ReadReport) -> Iterator[tuple[str, int, Row]]:
    """Yield (file or dataset, row number in it from 1, row) for all rows of a source."""
    settings = {config.source: "pairs.source=COLUMN", config.target: "pairs.target=COLUMN"}
    return iter_source_rows(source, settings, config.encoding, report)


def set_aside(pairs: list[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Split into (training, validation) in the order of `pairs`; depends only on the sources and the seed."""

    def key(source: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{source}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    sources = sorted({pair.source for pair in pairs}, key=key)
    chosen = set(sources[: min(max(1, round(fraction * len(sources))), MOST_HELD_OUT, len(sources) - 1)])
    return [p for p in pairs if p.source not in chosen], [p for p in pairs if p.source in chosen]
