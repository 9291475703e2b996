"""Temperature scaling and abstention thresholds, stored as calibration.json in the model directory.

    {"temperature": 1.7, "fitted_on": "validation", "examples": 512, "ece_before": 0.09, "ece_after": 0.02,
     "thresholds": {"0.95": {"probability": 0.83, "coverage": 0.71, "precision": 0.968}, ...}}

Thresholds apply to the calibrated probability of the predicted label. A precision that was not reached is absent.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, TypeAdapter

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import open_regular, write_json
from mini_llm.engine.run.state import describe, parse_json

FILE = "calibration.json"
TEMPERATURES = (0.05, 20.0)
PRIOR = 0.25  # standard deviation of the log temperature
_SMALLEST = float(np.finfo(np.float32).tiny)


class Threshold(NamedTuple):
    """Answer if the top probability is at least `probability`.

    `coverage` is the share of validation rows that get an answer, `precision` the share of those that are correct.
    """

    probability: float
    coverage: float
    precision: float


@dataclass(frozen=True)
class Calibration:
    """A temperature, and one abstention threshold for each wanted precision (0.9, 0.95, ...) that is reachable."""

    temperature: float = 1.0
    thresholds: dict[float, Threshold] = field(default_factory=dict)
    fitted_on: str = "validation"
    examples: int = 0
    ece_before: float | None = None
    ece_after: float | None = None

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities, float64 (N, C), with the same arg max in every row."""
        return scale(probabilities, self.temperature)


class CalibrationFile(BaseModel):
    """calibration.json."""

    temperature: float
    thresholds: dict[float, Threshold] = {}
    fitted_on: str = "validation"
    examples: int = 0
    ece_before: float | None = None
    ece_after: float | None = None


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(log p / temperature), float64 (N, C) (Guo et al. 2017, equation 9).

    Softmax ignores a constant in each row, so log-probabilities serve as logits.
    """
    logits = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _SMALLEST)) / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature that minimises the log loss of `probabilities` (N, C) on `labels` (N,).

    Targets are smoothed by 1 / (N + 2), as in Platt 1999, section 2.2: without that, a small validation set that is
    classified without a mistake would ask for temperature 0, which is certainty. A normal prior on the log temperature
    keeps a few rows, whose optimum is mostly chance, from making the calibration worse.
    """
    from scipy.optimize import minimize_scalar

    labels = np.asarray(labels)
    count, classes = np.shape(probabilities)
    logs = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _SMALLEST))
    smoothing = 1 / (count + 2)
    rows = np.arange(count)
    others = (logs.sum(-1) - logs[rows, labels]) / max(classes - 1, 1)
    target = ((1 - smoothing) * logs[rows, labels] + smoothing * others).mean()

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        top = (logs * inverse).max(-1)
        normaliser = top + np.log(np.exp(logs * inverse - top[:, None]).sum(-1))
        return float(normaliser.mean() - target * inverse) + log_temperature**2 / (2 * PRIOR**2 * count)

    bounds = (np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1]))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def write_calibration(directory: Path | str, calibration: Calibration) -> None:
    """Write calibration.json into a model directory."""
    content = asdict(calibration)
    content["thresholds"] = {str(wanted): row._asdict() for wanted, row in calibration.thresholds.items()}
    write_json(Path(directory) / FILE, content)


def read_calibration(directory: Path | str) -> Calibration | None:
    """Read calibration.json of a model directory, or return None without one. Raises CheckpointError if damaged."""
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    try:
        with open_regular(path) as file:
            content = TypeAdapter(CalibrationFile).validate_python(parse_json(file.read()))
        if not TEMPERATURES[0] / 2 <= content.temperature <= TEMPERATURES[1] * 2:
            raise ValueError(f"temperature {content.temperature}")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a calibration ({describe(error)}). Delete it to use uncalibrated probabilities, or train "
            "again"
        ) from None
    return Calibration(**dict(content))
