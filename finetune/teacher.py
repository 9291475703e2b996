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

from mini_llm.engine.run.files import content_hash, read_json, write_atomic, write_json

from .linear import LinearClassifier, fit_lsa, fit_tfidf, log_loss

FOLDER = "teacher"
# Weight of the label in the target of a training text; the rest is the teacher's.
LABEL_WEIGHT = 0.5


@dataclass
class Teacher:
    """`members` are averaged (log-linear pool). `train` (N, C) are out-of-fold, `unlabelled` (U, C) plain."""

    members: list[LinearClassifier]
    train: np.ndarray
    unlabelled: np.ndarray
    seconds: float
    description: str


def fit_teacher(
    folder: Path, texts: Sequence[str], labels: np.ndarray, classes: int, unlabelled: Sequence[str], seed: int
) -> Teacher:
    """Fit TF-IDF, and LSA if there is text enough, and keep the one or both with the smallest out-of-fold log loss.

    What was fitted is saved in `folder`, and read from there when a run is resumed.
    """
    fingerprint = content_hash([*zip(texts, labels.tolist(), strict=True), *unlabelled, seed])
    if (found := _load(folder, fingerprint)) is not None:
        return found
    started = time.perf_counter()
    models = [fit_tfidf(texts, labels, classes, seed)]
    lsa = fit_lsa(texts, labels, classes, unlabelled, seed)
    candidates = [models, [lsa], [*models, lsa]] if lsa is not None else [models]
    losses = [log_loss(pool([model.out_of_fold for model in members]), labels) for members in candidates]
    members = candidates[int(np.argmin(losses))]
    described = "; ".join(f"{' + '.join(m.name for m in c)}: {x:.3f}" for c, x in zip(candidates, losses, strict=True))
    teacher = Teacher(
        members,
        pool([member.out_of_fold for member in members]),
        pool([member.probabilities(unlabelled) for member in members]) if unlabelled else np.zeros((0, classes)),
        time.perf_counter() - started,
        f"teacher, cross-validated log loss: {described}",
    )
    _save(teacher, folder, fingerprint)
    return teacher


def read_members(folder: Path) -> list[LinearClassifier]:
    """The linear models of the teacher saved in `folder`; none where a run had no teacher."""
    settings = read_json(folder / "teacher.json")
    count = settings["members"] if isinstance(settings, dict) else 0
    return [member for i in range(count) if (member := LinearClassifier.load(folder / str(i))) is not None]


def targets(teacher: Teacher, labels: np.ndarray) -> np.ndarray:
    """Target distributions (N + U, C) of the training texts, then of the unlabelled ones."""
    classes = teacher.train.shape[1]
    train = LABEL_WEIGHT * np.eye(classes)[labels] + (1 - LABEL_WEIGHT) * teacher.train
    return np.vstack([train, teacher.unlabelled]).astype(np.float32)


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
    from safetensors.numpy import load_file

    settings = read_json(folder / "teacher.json")
    if not isinstance(settings, dict) or settings.get("fingerprint") != fingerprint:
        return None
    members = [LinearClassifier.load(folder / str(index)) for index in range(settings["members"])]
    arrays = load_file(folder / "targets.safetensors")
    return Teacher(
        [m for m in members if m], **arrays, seconds=settings["seconds"], description=settings["description"]
    )
