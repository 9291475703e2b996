"""Exact match and F1 of answers, with the normalization of SQuAD's own evaluation script (Rajpurkar et al. 2016)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Return `answer` in lower case, without punctuation, articles and superfluous white space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truth: str) -> float:
    return float(normalized(answer) == normalized(truth))


def f1(answer: str, truth: str) -> float:
    """Return the F1 of the words of `answer`. Where one of both is empty, it is 1 if both are (SQuAD 2.0)."""
    words, wanted = normalized(answer).split(), normalized(truth).split()
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def statistics(truth: Sequence[Sequence[str]], answers: Sequence[str]) -> np.ndarray:
    """Return exact match and F1 of each answer, (N, 2), with the best of its true answers; none: no answer."""
    return np.array(
        [
            [max(score(answer, true) for true in wanted or [""]) for score in (exact_match, f1)]
            for wanted, answer in zip(truth, answers, strict=True)
        ]
    )


def scores(means: np.ndarray) -> dict[str, np.ndarray]:
    return {"exact_match": means[:, 0], "answer_f1": means[:, 1]}
