"""Baselines for a classifier on the same split: the majority class, and linear models."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .examples import Example, Splits
from .fit import FEW_HELD_OUT
from .linear import TFIDF, LinearClassifier, fit_tfidf
from .metrics import Scores, compute_scores
from .teacher import pool

# The vectorizer reads about 1.5 MB/s, so this limits it to about a minute.
MAXIMUM_CHARACTERS = 64_000_000
# Linear models, each with its probabilities (N, C) of the scored rows.
Teacher = Sequence[tuple[LinearClassifier, np.ndarray]]


@dataclass(frozen=True)
class Baseline:
    """Scores of one baseline on the test split, or on the validation split if there is no test split."""

    name: str
    scores: Scores
    seconds: float


def compute_baselines(splits: Splits, seed: int = 0, teacher: Teacher = ()) -> list[Baseline]:
    """Return the scores of the majority class, of TF-IDF with logistic regression, and of the linear `teacher`.

    A teacher that is TF-IDF alone has no row of its own.
    """
    found = [majority_baseline(splits), tfidf_baseline(splits, seed, teacher)]
    return found if all(is_tfidf(member) for member, _ in teacher) else [*found, teacher_baseline(splits, teacher)]


def majority_baseline(splits: Splits) -> Baseline:
    """Always predict the most frequent training label (the lowest id in a tie)."""
    started = time.perf_counter()
    counts = Counter(example.label for example in splits.train)
    label = min(counts, key=lambda key: (-counts[key], key))
    scored = splits.validation if splits.test is None else splits.test
    return Baseline("majority class", score(scored, np.full(len(scored), label), splits.names), seconds_since(started))


def tfidf_baseline(splits: Splits, seed: int = 0, teacher: Teacher = ()) -> Baseline:
    """TF-IDF of words and word pairs with one-vs-rest logistic regression: that of `teacher`, else fitted here.

    The regularization is chosen on validation or, where that has few texts and for a teacher, by cross-validation on
    the training split; never on the test split. Samples training text beyond 64 million characters down to that size,
    and says so in the name.
    """
    started, scored = time.perf_counter(), splits.validation if splits.test is None else splits.test
    for member, probabilities in teacher:
        if is_tfidf(member):
            return Baseline(member.name, score(scored, probabilities.argmax(-1), splits.names), member.seconds)
    train = bounded_sample(splits.train, seed)
    note = f" ({len(train):,} of {len(splits.train):,} examples)" if len(train) < len(splits.train) else ""
    texts, labels = columns(train)
    held_out = columns(splits.validation) if len(splits.validation) >= FEW_HELD_OUT else None
    fitted = fit_tfidf(texts, labels, len(splits.names), seed, held_out)
    predictions = fitted.probabilities(columns(scored)[0]).argmax(-1)
    return Baseline(fitted.name + note, score(scored, predictions, splits.names), seconds_since(started))


def teacher_baseline(splits: Splits, teacher: Teacher) -> Baseline:
    """The linear models that taught the Transformer, pooled."""
    scored = splits.validation if splits.test is None else splits.test
    scores = score(scored, pool([probabilities for _, probabilities in teacher]).argmax(-1), splits.names)
    seconds = sum(member.seconds for member, _ in teacher)
    return Baseline(f"teacher: {' and '.join(member.name for member, _ in teacher)}", scores, seconds)


def is_tfidf(member: LinearClassifier) -> bool:
    return member.name == TFIDF


def columns(examples: Sequence[Example]) -> tuple[list[str], np.ndarray]:
    """Return the texts and the labels (N,)."""
    return [example.text for example in examples], np.array([example.label for example in examples])


def bounded_sample(examples: list[Example], seed: int) -> list[Example]:
    if sum(len(example.text) for example in examples) <= MAXIMUM_CHARACTERS:
        return examples
    order, taken, characters = random.Random(seed).sample(range(len(examples)), len(examples)), [], 0
    for index in order:
        characters += len(examples[index].text)
        if characters > MAXIMUM_CHARACTERS and taken:
            break
        taken.append(index)
    return [examples[index] for index in sorted(taken)]


def score(examples: list[Example], predictions: np.ndarray, names: list[str]) -> Scores:
    return compute_scores([example.label for example in examples], predictions, names)


def seconds_since(started: float) -> float:
    return time.perf_counter() - started
