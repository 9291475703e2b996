"""Prepare labelled texts for training: drop leaks, draw shots, hold out validation, and report what the data hold."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mini_llm.engine.errors import DataError

from ..data_config import DataConfig
from ..examples import Example, Splits
from .duplicates import Comparison, Leak, compare, conflicts
from .labels import listed, rare_labels, similar_names
from .splitting import draw_shots, split_validation

CLASSES_SHOWN = 12
CONFLICTS_SHOWN = 3
# Above this share of near leaks, the texts follow templates, and dropping would take the training data away.
TEMPLATES = 0.2
TEXT_SHOWN = 50  # characters of a text in a note


def prepare(splits: Splits, config: DataConfig) -> Splits:
    """Return `splits` without leaks, with `data.shots` drawn, a validation part, and notes for the user.

    An empty `splits.validation` means that none was given: validation_fraction of the training texts is held out, or
    with shots as many rows of each label as are drawn for training. Raises DataError when nothing can be held out, when
    validation and training hold the same texts, and when dropping leaks takes all texts of a label.
    """
    given = bool(splits.validation)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test or []}
    comparison = compare(parts, config.near_duplicates)
    report = describe(splits, comparison)
    if given and comparison.same_texts("train", "validation"):
        _same_data(splits, config, report)
    train = _without_leaks(splits, comparison.leaks(), config, report)
    validation = splits.validation
    if config.shots is not None:
        train, rest = draw_shots(train, config.shots, config.seed, comparison)
        report.append(f"{config.shots} shots: {len(train):,} training texts drawn with data.seed={config.seed}")
        if not given:
            validation = draw_shots(rest, config.shots, config.seed, comparison)[0]
    elif not given:
        train, validation = split_validation(train, config.validation_fraction, config.seed, comparison)
    if not validation:
        if config.group and len({example.group for example in train}) == 1:
            raise DataError(
                f"{config.path}: all rows are of one group (data.group={config.group}), so none can be held out for "
                "validation. Give data.validation=FILE, or another column of groups"
            )
        raise DataError(
            f"{config.path}: no label has two different texts or groups{' beyond its shots' * bool(config.shots)}, so "
            "no text can be held out for validation. Add data, or set data.validation=FILE"
        )
    prepared = Splits(
        splits.names, train, validation, splits.test, splits.description, splits.notes + report, splits.unlabelled
    )
    prepared.findings = splits.findings
    if not given:
        held_out = "as many rows of each label" if config.shots else f"{config.validation_fraction:.0%} of each label"
        prepared.notes.append(
            f"{len(validation):,} of {len(validation) + len(train):,} examples held out for validation ({held_out})"
        )
        # Groups, and near duplicates that were not sought in training, can still share texts with validation.
        if comparison.coverage != "all" or any(example.group for example in train):
            near = config.near_duplicates if config.near_duplicates != "auto" else comparison.coverage != "none"
            comparison = compare({"train": train, "validation": validation}, near)
        else:
            comparison = comparison.between(train, validation)
        prepared.train = _without_leaks(prepared, comparison.leaks(), config, prepared.notes)
    prepared.notes += rare_labels(prepared.names, (example.label for example in prepared.train))
    prepared.notes.insert(len(splits.notes), _class_counts(prepared))
    return prepared


def describe(splits: Splits, comparison: Comparison) -> list[str]:
    """Return notes on lengths, labels, conflicts and duplicates, and put the counts into `splits.findings`."""
    everything = [*splits.train, *splits.validation, *(splits.test or [])]
    rows = Counter(splits.names[example.label] for example in everything)
    notes = similar_names(rows)
    lengths = np.array([len(example.text) for example in splits.train])
    middle, long = np.quantile(lengths, (0.5, 0.9))
    notes.append(
        f"characters of a training text: median {middle:,.0f}, 90 % up to {long:,.0f}, longest {lengths.max():,}"
    )
    found = splits.findings
    found["characters"] = {"median": float(middle), "p90": float(long), "longest": int(lengths.max())}
    conflicting = conflicts(everything)
    found["conflicts"] = len(conflicting)
    if conflicting:
        notes.append(
            f"texts with different labels in different rows: {len(conflicting):,}, such as "
            + "; ".join(_conflict(group, splits.names) for group in conflicting[:CONFLICTS_SHOWN])
        )
    exact, near = comparison.duplicates("train")
    found["duplicates"] = {"exact": exact, "near": near if comparison.coverage == "all" else None}
    if exact:
        notes.append(f"{exact:,} of {len(splits.train):,} training texts repeat an earlier one")
    if near:
        notes.append(f"{near:,} different training texts are near duplicates of another")
    for part, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        exact, near = comparison.shared(part, other)
        found[f"{part}_in_{other}"] = {"exact": exact, "near": near if comparison.coverage != "none" else None}
        if exact or near:
            where = "training" if other == "train" else other
            count = len(comparison.ids[part])
            notes.append(f"{exact:,} of {count:,} {part} texts are also in the {where} data, {near:,} more nearly")
    if comparison.same_texts("test", "validation"):
        notes.append("the test data hold the same texts as the validation data: test scores will be optimistic")
    found["near_duplicates"] = comparison.coverage
    if comparison.coverage != "all":
        skipped = {"across": "inside the training data", "none": "at all"}[comparison.coverage]
        notes.append(f"near duplicates were not sought {skipped} ({len(comparison.texts):,} different texts)")
    return notes


def _without_leaks(splits: Splits, leaks: list[Leak], config: DataConfig, notes: list[str]) -> list[Example]:
    """Return the training examples without the leaks, or with data.leaks=keep all of them, and note what was done."""
    near = [leak for leak in leaks if leak.similarity < 1]
    templates = config.near_duplicates == "auto" and len(near) > TEMPLATES * len(splits.train)
    for part in dict.fromkeys(leak.part for leak in leaks):
        own = [leak for leak in leaks if leak.part == part]
        exact = sum(leak.similarity == 1 for leak in own)
        one = own[0]
        counts = f"{exact:,} training texts stand in the {part} data and {len(own) - exact:,} nearly"
        example = f"such as {splits.train[one.row].source} and {one.other.source}"
        if one.similarity < 1:
            example += f", similarity {one.similarity:.2f}"
        done = "kept, so the scores may be too high" if config.leaks == "keep" else "dropped from training"
        notes.append(f"{counts}, {example}: {done} (data.leaks={config.leaks})")
        splits.findings.setdefault("leaks", {})[part] = {"exact": exact, "near": len(own) - exact}
    if config.leaks == "keep":
        return list(splits.train)
    if templates:
        notes.append(
            f"but the {len(near):,} near duplicates stay: more than {TEMPLATES:.0%} of the training texts are near "
            "duplicates of scored ones, as if written from templates (data.near_duplicates=true drops them too)"
        )
    dropped = {leak.row for leak in leaks if not (templates and leak.similarity < 1)}
    kept = [example for row, example in enumerate(splits.train) if row not in dropped]
    lost = {example.label for example in splits.train} - {example.label for example in kept}
    if lost:
        names = listed([splits.names[label] for label in sorted(lost)], kind="")
        raise DataError(
            f"{config.path}: every training text of these labels stands in the validation or test data too: {names}. "
            "Score other texts, or keep them in training with data.leaks=keep; the scores are then too high"
        )
    return kept


def _same_data(splits: Splits, config: DataConfig, notes: list[str]) -> None:
    given = config.validation or config.validation_split or "validation"
    message = f"the validation data ({given}) hold the same texts as the training data ({config.path})"
    if config.leaks == "drop":
        raise DataError(
            f"{message}, under another name. Set data.validation to other texts, or leave it out and "
            f"{config.validation_fraction:.0%} are held out (data.leaks=keep trains and validates on the same texts)"
        )
    notes.append(f"{message}: validation scores mean nothing")


def _class_counts(splits: Splits) -> str:
    """'classes (training / validation / test): neg: 450 / 50 / 500; ...', the largest first."""
    rows = sorted(splits.counts(), key=lambda row: -row[1])
    columns = 4 if splits.test is not None else 3
    header = " / ".join(("training", "validation", "test")[: columns - 1])
    shown = "; ".join(f"{row[0]}: " + " / ".join(f"{n:,}" for n in row[1:columns]) for row in rows[:CLASSES_SHOWN])
    more = f"; and {len(rows) - CLASSES_SHOWN} smaller ones" if len(rows) > CLASSES_SHOWN else ""
    splits.findings["classes"] = {row[0]: list(row[1:columns]) for row in rows}
    return f"{len(rows)} classes ({header}): {shown}{more}"


def _conflict(group: Sequence[Example], names: Sequence[str]) -> str:
    text = " ".join(group[0].text.split())
    short = text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN] + "..."
    return f"'{short}' ({', '.join(f'{example.source}: {names[example.label]}' for example in group[:4])})"
