"""Split examples: validation, k-shot training sets and folds, stratified by label, with groups kept together."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from mini_llm.engine.errors import DataError

from ..data_config import DataConfig
from ..examples import Example
from .duplicates import Comparison
from .normal_form import normal_form


def split_validation(
    examples: Sequence[Example], fraction: float, seed: int, comparison: Comparison | None = None
) -> tuple[list[Example], list[Example]]:
    """Hold out `fraction` of each label. Return (training, validation), both in the order of `examples`.

    Keeps together the rows of one group, or where there are no groups equal texts and, with a `comparison` of
    `examples`, near duplicates. The choice depends on the texts and the seed, not on their order. A label keeps at
    least one group in training, and has one in validation if it has two. Where groups hold several labels, the shares
    are as near to `fraction` as one pass over the shuffled groups gets.
    """
    groups = group_rows(examples, comparison, max(2, int(fraction * len(examples) / 4)))
    counts = [Counter(examples[row].label for row in rows) for rows in groups]
    total = Counter(example.label for example in examples)
    left = Counter(label for count in counts for label in count)  # groups of each label that are in training
    taken: Counter[int] = Counter()
    chosen: set[int] = set()
    for index in _shuffled(examples, groups, seed):
        count = counts[index]
        if any(left[label] < 2 for label in count):
            continue
        # The change of the squared distances from the wanted counts, each relative to its label's size.
        change = sum(
            ((taken[label] + n - fraction * total[label]) ** 2 - (taken[label] - fraction * total[label]) ** 2)
            / total[label] ** 2
            for label, n in count.items()
        )
        if change <= 1e-12 or not any(taken[label] for label in count):
            chosen.update(groups[index])
            taken.update(count)
            left.subtract(dict.fromkeys(count, 1))
    training = [example for row, example in enumerate(examples) if row not in chosen]
    return training, [examples[row] for row in sorted(chosen)]


def draw_shots(
    examples: Sequence[Example], shots: int, seed: int, comparison: Comparison | None = None
) -> tuple[list[Example], list[Example]]:
    """Draw `shots` rows of each label for training. Return (training, rest), both in the order of `examples`.

    A label with fewer rows gives all it has. The rest shares no group, equal text or near duplicate with training.
    """
    groups = group_rows(examples, comparison, max(2, shots))
    drawn: Counter[int] = Counter()
    training: set[int] = set()
    touched: set[int] = set()
    for index in _shuffled(examples, groups, seed):
        for row in groups[index]:
            if drawn[examples[row].label] < shots:
                drawn[examples[row].label] += 1
                training.add(row)
                touched.update(groups[index])
    return [examples[row] for row in sorted(training)], [e for row, e in enumerate(examples) if row not in touched]


def folds(examples: Sequence[Example], k: int, seed: int = 0, comparison: Comparison | None = None) -> list[np.ndarray]:
    """Return k disjoint arrays of row indices, sorted, which together hold all rows: the folds of a cross-validation.

    Stratified by label; rows of one group, equal texts and near duplicates share a fold, as in split_validation.
    Independent of the order of `examples`. With fewer than k groups some folds are empty. Raises ValueError for k < 2.
    """
    if k < 2:
        raise ValueError(f"cross-validation needs at least 2 folds, not {k}")
    groups = group_rows(examples, comparison, max(2, len(examples) // (4 * k)))
    total = Counter(example.label for example in examples)
    loads = {label: np.zeros(k) for label in total}
    sizes = np.zeros(k)
    members: list[list[int]] = [[] for _ in range(k)]
    # Large groups first: the small ones even out what those leave.
    for index in sorted(_shuffled(examples, groups, seed), key=lambda index: -len(groups[index])):
        count = Counter(examples[row].label for row in groups[index])
        # The growth of the sum of squared shares is smallest where the labels of the group are rarest.
        cost = sum((2 * loads[label] * n + n * n) / total[label] ** 2 for label, n in count.items())
        fold = int(np.lexsort((sizes, cost))[0])
        for label, n in count.items():
            loads[label][fold] += n
        sizes[fold] += len(groups[index])
        members[fold] += groups[index]
    return [np.array(sorted(rows), dtype=np.int64) for rows in members]


def take_fold(examples: Sequence[Example], config: DataConfig, comparison: Comparison | None = None) -> np.ndarray:
    """The rows (N,) of the fold that `config.fold` names, drawn by its seed. Raises DataError for an empty fold."""
    assert config.fold_of is not None
    number, k = config.fold_of
    parts = folds(examples, k, config.seed, comparison)
    filled = sum(len(part) > 0 for part in parts)
    if filled < k:
        kind = "groups" if config.group else "different texts"
        raise DataError(
            f"{config.path}: {len(examples):,} rows hold {filled:,} {kind}, too few for {k:,} folds. "
            "Take fewer folds, or add rows"
        )
    return parts[number - 1]


def fold_note(config: DataConfig, scored: int, left: int) -> str:
    """What a run prints of its fold."""
    return f"fold {config.fold}: {scored:,} rows are the test data, {left:,} are left; test files are not read"


def group_rows(examples: Sequence[Example], comparison: Comparison | None, most: int) -> list[list[int]]:
    """Return the row indices of each group: equal `Example.group` or else equal text or near duplicates.

    Chains of near duplicates end at `most` rows, since templates would join a whole label.
    """
    by_key: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        by_key[f"group {example.group}" if example.group else f"text {normal_form(example.text)}"].append(row)
    groups = list(by_key.values())
    if comparison is None or not comparison.near or any(example.group for example in examples):
        return groups
    parent = list(range(len(groups)))
    size = [len(rows) for rows in groups]
    group_of = {comparison.texts[normal_form(examples[rows[0]].text)]: index for index, rows in enumerate(groups)}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    pairs = [
        (-similarity, *sorted((examples[groups[a][0]].text, examples[groups[b][0]].text)), a, b)
        for text, others in comparison.near.items()
        for other, similarity in others.items()
        if text < other and (a := group_of.get(text)) is not None and (b := group_of.get(other)) is not None
    ]
    for *_, a, b in sorted(pairs):  # the most similar first, whatever the order of the rows
        a, b = root(a), root(b)
        if a != b and size[a] + size[b] <= most:
            parent[b] = a
            size[a] += size[b]
    joined: dict[int, list[int]] = defaultdict(list)
    for index, rows in enumerate(groups):
        joined[root(index)] += rows
    return list(joined.values())


def _shuffled(examples: Sequence[Example], groups: list[list[int]], seed: int) -> list[int]:
    """The indices of `groups` in a random order that depends on the seed and the texts or group names alone."""

    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()

    # min: a group has no order of its own.
    keys = [min(digest(examples[row].group or examples[row].text.strip()) for row in rows) for rows in groups]
    return sorted(range(len(groups)), key=keys.__getitem__)
