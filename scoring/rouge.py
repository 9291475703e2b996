"""ROUGE-1, ROUGE-2 and ROUGE-L F1 (Lin 2004), as Google's rouge-score computes them without a stemmer."""

import re
from collections import Counter
from collections.abc import Sequence

NAMES = ("rouge1", "rouge2", "rougeL")


def rouge(text: str, target: str) -> dict[str, float]:
    """Return the F1 of a text against one reference, from 0 to 100. Words are lower-case runs of a-z and 0-9."""
    ours, theirs = words(text), words(target)
    found = {}
    for n in (1, 2):
        grams = [Counter(zip(*(side[i:] for i in range(n)), strict=False)) for side in (ours, theirs)]
        found[f"rouge{n}"] = _f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())
    return {**found, "rougeL": _f1(longest_common_subsequence(ours, theirs), len(ours), len(theirs))}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest sequence that both contain in order, perhaps with gaps."""
    row = [0] * (len(b) + 1)
    for word in a:
        previous = row
        row = [0]
        for j, other in enumerate(b):
            row.append(previous[j] + 1 if word == other else max(previous[j + 1], row[j]))
    return row[-1]


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 100 * 2 * shared / (ours + theirs) if shared else 0.0
