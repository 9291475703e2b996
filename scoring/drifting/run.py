"""`python -m scoring drift MODEL REFERENCE NEW`: tests of input, predictions and quality, by permutation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mini_llm.engine.errors import ConfigError, DataError

from ..holm import adjusted
from ..subject import Subject
from .features import Features, count_matrix, read_features, sample_texts
from .permutations import (
    draw_groups,
    jensen_shannon,
    judge,
    kolmogorov_smirnov,
    mean_difference,
    mean_discrepancy,
    unknown_share,
)

DRIFT = 6  # exit code
PERMUTATIONS = 999
FOLDS = 5
AT_ONCE = 100  # groups: the counts of all words are held for each


class Check(NamedTuple):
    """A statistic of one feature. `values` (N,), if any, are averaged for the report."""

    subject: str
    name: str
    statistic: Callable[[np.ndarray], np.ndarray]
    values: np.ndarray | None = None


def find_drift(
    subject: Subject,
    reference: str,
    new: str,
    text: str = "text",
    label: str | None = None,
    rows: int = 1000,
    permutations: int = PERMUTATIONS,
    level: float = 0.05,
    seed: int = 0,
    batch_tokens: int = 8192,
) -> dict[str, Any]:
    """Return the checks, and whether there is drift: whether any p-value, adjusted for the number of checks (Holm
    1979), is at most `level`. Without drift that happens with probability `level` at most. Raises ConfigError,
    DataError."""
    if label is not None and subject.kind != "classifier":
        raise DataError(f"--label compares the quality of a classifier; {subject.run} is none. Leave --label out")
    texts = [sample_texts(file, text, label, rows, seed) for file in (reference, new)]
    counts = [len(part.documents) for part in texts]
    features = read_features(subject, *texts, seed, batch_tokens)
    checks = make_checks(features)
    if len(checks) / (permutations + 1) > level:
        raise ConfigError(
            f"--permutations {permutations} can never show drift at --level {level:g} in {len(checks)} checks: give at "
            f"least {int(np.ceil(len(checks) / level))}"
        )
    found = judge_all(checks, draw_groups(*counts, permutations, seed), level)
    return {
        "reference": {"file": reference, "texts": counts[0]},
        "new": {"file": new, "texts": counts[1]},
        "level": level,
        "permutations": permutations,
        "checks": found,
        "domain_classifier_auc": domain_auc(features.embeddings, counts[0], seed),
        "drift": any(row["drift"] for row in found),
    }


def make_checks(features: Features) -> list[Check]:
    """Return the checks that these features allow."""

    def number(subject: str, name: str, values: np.ndarray) -> Check:
        return Check(subject, name, lambda groups: kolmogorov_smirnov(values, groups), values)

    found = [
        number("input", "length in characters", features.characters),
        Check("input", "unknown words", lambda groups: unknown_share(features.words, groups)),
        Check("input", "distribution of tokens", lambda groups: jensen_shannon(features.tokens, groups)),
        Check("input", "embeddings (MMD)", lambda groups: mean_discrepancy(features.embeddings, groups)),
    ]
    found += [number("prediction", name, values) for name, values in features.predictions.items()]
    if features.classes is not None:
        classes = count_matrix([[label] for label in features.classes])
        found.append(Check("prediction", "predicted labels", lambda groups: jensen_shannon(classes, groups)))
    if features.correct is not None:
        correct = features.correct.astype(float)
        found.append(Check("quality", "accuracy", lambda groups: mean_difference(correct, groups), correct))
    return found


def judge_all(checks: list[Check], groups: np.ndarray, level: float) -> list[dict[str, Any]]:
    """Return one row per check. Statistics are computed for AT_ONCE groups at a time."""
    new = groups[0] > 0
    parts = np.array_split(groups, -(-len(groups) // AT_ONCE))
    verdicts = [judge(np.concatenate([check.statistic(part) for part in parts]), level) for check in checks]
    found: list[dict[str, Any]] = []
    for check, verdict, value in zip(checks, verdicts, adjusted([v.p_value for v in verdicts]), strict=True):
        row = {"about": check.subject, "name": check.name, **verdict._asdict(), "adjusted_p_value": value}
        if check.values is not None:
            row |= {"reference": float(check.values[~new].mean()), "new": float(check.values[new].mean())}
        found.append(row | {"drift": value <= level})
    return found


def domain_auc(embeddings: np.ndarray, reference: int, seed: int) -> float | None:
    """Return how well a linear classifier tells new embeddings from the reference: the area under the ROC curve of
    cross-validated scores, 0.5 by chance; None for too few texts. It is an effect size, not a test."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = (np.arange(len(embeddings)) >= reference).astype(int)
    if min(reference, len(embeddings) - reference) < FOLDS:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, embeddings, labels, cv=folds, method="decision_function")
    return float(roc_auc_score(labels, scores))
