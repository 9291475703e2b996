"""The pool of a Transformer and linear models, stored beside the Transformer in its model directory.

    model/linear/ensemble.json      {"members": 2, "weight": 0.4}
    model/linear/calibration.json   temperature and thresholds of the pool (scores/calibration.py)
    model/linear/0/linear.json, linear.safetensors, model/linear/1/...

The rest of the directory stays a plain Hugging Face classifier, which ignores this folder. The pool is log-linear: the
normalized weighted geometric mean of the probabilities (Heskes 1998). Its weight is chosen on validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, PositiveInt

from mini_llm.engine.errors import CheckpointError, DataError
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.state import read_state

from ..linear import LinearClassifier
from ..scores.calibration import Calibration, read_calibration, write_calibration
from ..teacher import load_members, pool
from .logistic_regression import log_loss

FOLDER = "linear"
WEIGHTS = np.linspace(0, 1, 21)
# Validation texts below which they cannot choose a weight.
FEW_HELD_OUT, WEIGHT_WITH_FEW = 50, 0.5


class EnsembleFile(BaseModel):
    """ensemble.json."""

    members: PositiveInt
    weight: Annotated[float, Field(ge=0, le=1)]


@dataclass
class Ensemble:
    """`members` together have `weight` in the pool, the Transformer has the rest."""

    members: list[LinearClassifier]
    weight: float
    calibration: Calibration

    def pool(self, transformer: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (N, C) of the pool, from those of the Transformer (N, C) and the texts."""
        return mix(transformer, linear_probabilities(self.members, texts), self.weight)


def linear_probabilities(members: Sequence[LinearClassifier], texts: Sequence[str]) -> np.ndarray:
    """Pooled probabilities (N, C) of linear models."""
    return pool([member.probabilities(texts) for member in members])


def mix(transformer: np.ndarray, linear: np.ndarray, weight: float) -> np.ndarray:
    """Log-linear pool (N, C) in which `linear` has `weight`."""
    return pool([transformer, linear], [1 - weight, weight])


def choose_weight(transformer: np.ndarray, linear: np.ndarray, labels: np.ndarray) -> float:
    """The weight of the linear models with the smallest log loss on validation; 0: they do not help."""
    if len(labels) < FEW_HELD_OUT:
        return WEIGHT_WITH_FEW
    return float(WEIGHTS[np.argmin([log_loss(mix(transformer, linear, w), labels) for w in WEIGHTS])])


def write_ensemble(directory: Path, ensemble: Ensemble) -> None:
    """Write `ensemble` into the model directory."""
    folder = directory / FOLDER
    for index, member in enumerate(ensemble.members):
        member.save(folder / str(index))
    write_calibration(folder, ensemble.calibration)
    # Last: it says that the rest is whole.
    write_json(folder / "ensemble.json", {"members": len(ensemble.members), "weight": ensemble.weight})


def read_ensemble(directory: Path) -> Ensemble | None:
    """The ensemble of a model directory, or None without one. Raises CheckpointError if it is damaged."""
    folder = directory / FOLDER
    if not folder.is_dir():
        return None
    settings = read_state(folder / "ensemble.json", EnsembleFile)
    try:
        if settings is None:
            raise DataError(f"{folder / 'ensemble.json'}: missing or damaged")
        members = load_members(folder, settings.members)
    except DataError as error:
        raise CheckpointError(f"{error}. Delete {folder} to use the Transformer alone, or train again") from None
    return Ensemble(members, settings.weight, read_calibration(folder) or Calibration())
