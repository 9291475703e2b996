"""`python -m finetune compare A B`: two or more classifiers on the same rows, the first beside each of the others."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mini_llm.corpus.parts import find_scored
from mini_llm.engine.config import build_config
from mini_llm.engine.errors import ConfigError, DataError

from ..data_config import DataConfig
from .compare import Comparison, compare
from .predictions import Predictions, read_predictions
from .seeds import SeedGroup, seed_groups


class Pair(NamedTuple):
    """The first classifier (a) beside another one (b), and whether each is pooled with linear models."""

    a: str
    b: str
    comparison: Comparison
    pooled: tuple[bool, bool]


def compare_classifiers(
    paths: Sequence[Path],
    data: str | None = None,
    text: str = "text",
    label: str = "label",
    batch_size: int = 64,
    encoding: str | None = None,
    alone: bool = False,
    on_null: str = "stop",
) -> tuple[list[Pair], list[SeedGroup]]:
    """Compare the first of `paths` with each of the others, and summarise runs that differ by their seed only.

    Judges what `predict` gives: the Transformer pooled with the linear models stored beside it, where there are any;
    `alone`: the Transformer alone. Uses the predictions that finished runs stored for the rows they were scored on;
    with `data` (labelled rows: file, folder, glob or dataset), the classifiers, runs or model directories, label those
    rows first. Raises ConfigError if the runs were scored on different rows, CheckpointError, DataError.
    """
    if len(paths) < 2:
        raise ConfigError("compare needs two classifiers or more, for example: finetune compare runs/one runs/two")
    if data is None:
        found = [read_predictions(path, alone) for path in paths]
    else:
        settings = {"path": data, "text": text, "label": label, "encoding": encoding, "on_null": on_null}
        config = build_config(DataConfig, settings, "compare")
        found = predict_rows(paths, config, batch_size, alone)
    names = [str(path) for path in paths]
    pairs = []
    for name, other in zip(names[1:], found[1:], strict=True):
        labels, a, b = aligned(found[0], other, names[0], name)
        pairs.append(Pair(names[0], name, compare(labels, a, b), (found[0].pooled, other.pooled)))
    return pairs, seed_groups(paths, alone)


def aligned(a: Predictions, b: Predictions, name_a: str, name_b: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label ids (N,) and both probabilities (N, C) in the rows and label order of `a`. Raises ConfigError."""
    advice = "Compare them on rows that neither has seen: finetune compare A B --data FILE"
    if set(a.names) != set(b.names):
        only = sorted(set(a.names) ^ set(b.names))[:5]
        raise ConfigError(f"{name_a} and {name_b} have different labels (only one has {', '.join(only)})")
    # A source that occurs twice (rows of equal origin) is told apart by its order.
    rows_a, rows_b = numbered(a.sources), numbered(b.sources)
    if set(rows_a) != set(rows_b):
        shared, most = len(set(rows_a) & set(rows_b)), max(len(rows_a), len(rows_b))
        raise ConfigError(
            f"{name_a} and {name_b} were scored on different rows: {shared:,} of {most:,} are the same. {advice}"
        )
    position = {row: index for index, row in enumerate(rows_b)}
    order = [position[row] for row in rows_a]
    changed = [row for row, index in zip(rows_a, order, strict=True) if a.labels[rows_a[row]] != b.labels[index]]
    if changed:
        raise ConfigError(
            f"{name_a} and {name_b}: {len(changed):,} rows have different labels, the first is {changed[0][0]}: "
            f"the data changed between the runs. {advice}"
        )
    columns = [b.names.index(name) for name in a.names]
    labels = np.array([a.names.index(label) for label in a.labels])
    return labels, a.probabilities, b.probabilities[order][:, columns]


def numbered(sources: Sequence[str]) -> dict[tuple[str, int], int]:
    """Map (source, how often it occurred before) to its position."""
    seen: dict[str, int] = {}
    found = {}
    for position, source in enumerate(sources):
        found[source, seen.get(source, 0)] = position
        seen[source] = seen.get(source, 0) + 1
    return found


def predict_rows(paths: Sequence[Path], config: DataConfig, batch_size: int, alone: bool) -> list[Predictions]:
    """Label the rows of `config` with each classifier. Raises DataError for a label that a classifier does not have."""
    from ..data import read_rows
    from ..predict import Classifier
    from ..predicting.score import with_flags

    try:
        rows = read_rows(config, find_scored(config.path, config.split), [])
    except DataError as error:
        raise with_flags(error) from None
    found = []
    for path in paths:
        classifier = Classifier(path, alone)
        unknown = [row for row in rows if row.label not in classifier.names]
        if unknown:
            raise DataError(
                f"{unknown[0].file} row {unknown[0].number}: label '{unknown[0].label}' ({len(unknown):,} rows in "
                f"all) is not a label of {path}. Remove these rows, or name the right column: --label COLUMN"
            )
        values = classifier.calibrated([row.text for row in rows], batch_size)
        labels, sources = [row.label for row in rows], [f"{row.file} row {row.number}" for row in rows]
        found.append(Predictions(classifier.names, labels, sources, values, classifier.ensemble is not None))
    return found


def print_comparisons(pairs: Sequence[Pair], groups: Sequence[SeedGroup], as_json: bool) -> None:
    """Print what `compare_classifiers` returned: text, or one JSON object."""
    import json

    if as_json:
        content: dict[str, Any] = {
            "pairs": [
                {"a": a, "b": b, "pooled": pooled, **asdict(c), "verdict": c.verdict(a, b)} for a, b, c, pooled in pairs
            ],
            "seeds": [asdict(group) for group in groups],
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    for a, b, comparison, pooled in pairs:
        first, second = (", pooled with its linear models" * which for which in pooled)
        print(f"A: {a}{first}\nB: {b}{second}\n{comparison}\n{comparison.verdict(a, b)}\n")
    for group in groups:
        print(group)
