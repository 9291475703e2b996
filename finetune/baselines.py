"""Baselines for a classifier on the same split: the majority class, and TF-IDF with logistic regression."""

import random
import time
import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np

from .examples import Example, Splits
from .linear import LinearClassifier
from .metrics import Scores, compute_scores
from .recipe.words import fit_tfidf_features

# The vectorizer reads about 1.5 MB/s, so this limits it to about a minute.
MAXIMUM_CHARACTERS = 64_000_000
INVERSE_REGULARIZATION = (1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Baseline:
    """Scores of one baseline on the test split, or on the validation split if there is no test split."""

    name: str
    scores: Scores
    seconds: float


def compute_baselines(splits: Splits, seed: int = 0) -> list[Baseline]:
    """Return the scores of the majority class, then of TF-IDF with logistic regression."""
    return [majority_baseline(splits), tfidf_baseline(splits, seed)]


def majority_baseline(splits: Splits) -> Baseline:
    """Always predict the most frequent training label (the lowest id in a tie)."""
    started = time.perf_counter()
    counts = Counter(example.label for example in splits.train)
    label = min(counts, key=lambda key: (-counts[key], key))
    scored = splits.validation if splits.test is None else splits.test
    return Baseline("majority class", score(scored, np.full(len(scored), label), splits.names), seconds_since(started))


def tfidf_baseline(splits: Splits, seed: int = 0) -> Baseline:
    """TF-IDF of words and word pairs with one-vs-rest logistic regression.

    Selects the regularization on the validation split, never on the test split. Samples training text beyond 64 million
    characters down to that size, and says so in the name.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    started = time.perf_counter()
    train, name = bounded_sample(splits.train, seed), "TF-IDF + logistic regression"
    if len(train) < len(splits.train):
        name += f" ({len(train):,} of {len(splits.train):,} examples)"
    vectorizer, features = fit_tfidf_features([example.text for example in train])
    labels = np.array([example.label for example in train])
    validation = vectorizer.transform([example.text for example in splits.validation])
    validation_labels = np.array([example.label for example in splits.validation])
    best, best_accuracy = None, -1.0
    for inverse in INVERSE_REGULARIZATION:
        # One-vs-rest with liblinear is ten times faster here than the multinomial loss, and as accurate.
        model = OneVsRestClassifier(LogisticRegression(C=inverse, solver="liblinear", random_state=seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features, labels)
        accuracy = float((model.predict(validation) == validation_labels).mean())
        if accuracy > best_accuracy:
            best, best_accuracy = model, accuracy
    assert best is not None, "INVERSE_REGULARIZATION is empty"
    scored = splits.validation if splits.test is None else splits.test
    predictions = best.predict(vectorizer.transform([example.text for example in scored]))
    return Baseline(name, score(scored, predictions, splits.names), seconds_since(started))


def teacher_baseline(splits: Splits, members: list[LinearClassifier], probabilities: np.ndarray) -> Baseline:
    """The linear models that taught the Transformer, with their pooled `probabilities` of the scored rows (N, C)."""
    scored = splits.validation if splits.test is None else splits.test
    scores = score(scored, probabilities.argmax(-1), splits.names)
    seconds = sum(member.seconds for member in members)
    return Baseline(f"teacher: {' and '.join(member.name for member in members)}", scores, seconds)


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
