"""A linear teacher for the Transformer: soft labels for the training texts and for unlabelled ones.

Five minutes of pretraining teach a small Transformer less about whole documents than TF-IDF or LSA know. So it learns
from their probabilities (knowledge distillation, Hinton et al. 2015). A training text gets the out-of-fold probability
of a model that was not trained on it, mixed with its label; an unlabelled text gets the probability alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, FiniteFloat, NonNegativeInt

from mini_llm.engine.errors import DataError
from mini_llm.engine.run.files import content_hash, write_atomic, write_json
from mini_llm.engine.run.state import read_state, say

from .linear import LinearClassifier, fit_tfidf, read_arrays
from .recipe.logistic_regression import log_loss
from .recipe.lsa import fit_lsa

FOLDER = "teacher"
# Weight of the label in the target of a training text; the rest is the teacher's.
LABEL_WEIGHT = 0.5


class TeacherFile(BaseModel):
    """teacher.json."""

    members: NonNegativeInt
    seconds: FiniteFloat
    description: str
    fingerprint: str


@dataclass
class Teacher:
    """`members` are averaged (log-linear pool). `train` (N, C) are out-of-fold, `unlabelled` (U, C) plain."""

    members: list[LinearClassifier]
    train: np.ndarray
    unlabelled: np.ndarray
    seconds: float
    description: str

    def label(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (N, C) of `texts`, pooled."""
        if not texts:
            return np.zeros((0, self.train.shape[1]))
        return pool([member.probabilities(texts) for member in self.members])

    @property
    def knows_unlabelled(self) -> bool:
        """Whether a member was fitted on unlabelled text, because cross-validation found that this helps."""
        return any(member.components is not None for member in self.members)


def fit_teacher(
    folder: Path,
    texts: Sequence[str],
    labels: np.ndarray,
    classes: int,
    unlabelled: Sequence[str],
    seed: int,
    seconds: float = float("inf"),
) -> Teacher:
    """Fit TF-IDF in two ways, and LSA if there is text enough, and keep the model, or the better TF-IDF with LSA, that
    has the smallest out-of-fold log loss. After `seconds` no further candidate is tried.

    What was fitted is saved in `folder`, and read from there when a run is resumed.
    """
    fingerprint = content_hash([*zip(texts, labels.tolist(), strict=True), *unlabelled, seed])
    if (found := _load(folder, fingerprint)) is not None:
        return found
    started = time.perf_counter()
    deadline = started + seconds
    single = [fit_tfidf(texts, labels, classes, seed, deadline=deadline)]
    if time.perf_counter() < deadline:
        single.append(fit_tfidf(texts, labels, classes, seed, naive_bayes=True, deadline=deadline))
    lsa = None
    if time.perf_counter() < deadline:
        lsa = fit_lsa(texts, labels, classes, unlabelled, seed, deadline)
    tfidf = min(single, key=lambda model: model.log_loss)
    candidates = [[model] for model in single] + ([[lsa], [tfidf, lsa]] if lsa is not None else [])
    losses = [log_loss(pool([model.out_of_fold for model in members]), labels) for members in candidates]
    members = candidates[int(np.argmin(losses))]
    described = "; ".join(f"{' + '.join(m.name for m in c)}: {x:.3f}" for c, x in zip(candidates, losses, strict=True))
    teacher = Teacher(
        members,
        pool([member.out_of_fold for member in members]),
        np.zeros((0, classes)),
        0.0,
        f"teacher, cross-validated log loss: {described}",
    )
    teacher.unlabelled = teacher.label(unlabelled)
    teacher.seconds = time.perf_counter() - started
    _save(teacher, folder, fingerprint)
    # What is labelled later has to be labelled alike in a resumed run, which reads rounded weights.
    teacher.members = load_members(folder, len(members))
    return teacher


def read_members(folder: Path) -> list[LinearClassifier]:
    """The linear models of the teacher saved in `folder`; none where a run had no teacher."""
    settings = read_state(folder / "teacher.json", TeacherFile)
    try:
        return [] if settings is None else load_members(folder, settings.members)
    except DataError as error:
        say(f"{error}; the teacher is left out")
        return []


def targets(teacher: Teacher, labels: np.ndarray, mixed: Sequence[str] = ()) -> np.ndarray:
    """Target distributions (N + U + M, C) of the training texts, the unlabelled ones and those that are mixed."""
    classes = teacher.train.shape[1]
    train = LABEL_WEIGHT * np.eye(classes)[labels] + (1 - LABEL_WEIGHT) * teacher.train
    return np.vstack([train, teacher.unlabelled, teacher.label(mixed)]).astype(np.float32)


def pool(members: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """Log-linear pool: the normalized weighted geometric mean of probabilities (N, C)."""
    weights = [1 / len(members)] * len(members) if weights is None else weights
    logs = [w * np.log(np.maximum(member, 1e-9)) for w, member in zip(weights, members, strict=True)]
    scores = np.sum(logs, axis=0)
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def _save(teacher: Teacher, folder: Path, fingerprint: str) -> None:
    from safetensors.numpy import save

    for index, member in enumerate(teacher.members):
        member.save(folder / str(index))
    arrays = {"train": teacher.train, "unlabelled": teacher.unlabelled}
    write_atomic(folder / "targets.safetensors", save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    described = {"members": len(teacher.members), "seconds": teacher.seconds, "description": teacher.description}
    write_json(
        folder / "teacher.json", described | {"fingerprint": fingerprint}
    )  # last: it says that the rest is whole


def _load(folder: Path, fingerprint: str) -> Teacher | None:
    settings = read_state(folder / "teacher.json", TeacherFile)
    if settings is None or settings.fingerprint != fingerprint:
        return None
    try:
        members, arrays = load_members(folder, settings.members), read_arrays(folder / "targets.safetensors")
        train, unlabelled = arrays["train"], arrays["unlabelled"]
    except (DataError, KeyError) as error:
        say(f"{error}; the teacher is fitted anew")
        return None
    return Teacher(members, train, unlabelled, settings.seconds, settings.description)


def load_members(folder: Path, count: int) -> list[LinearClassifier]:
    """The linear models 0 to count - 1. Raises DataError if one is missing or damaged."""
    found = [LinearClassifier.load(folder / str(index)) for index in range(count)]
    members = [member for member in found if member is not None]
    if len(members) < count:
        raise DataError(f"{folder}: {count - len(members)} of {count} models are missing or damaged")
    return members
