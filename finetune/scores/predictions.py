"""The probabilities that a run gave to the rows it was scored on: tables/predictions.jsonl.

{"split": "test", "labels": ["neg", "pos"]}
{"source": "test.csv row 1", "label": "pos", "probabilities": [0.2, 0.8], "pooled": [0.1, 0.9]}
...

`probabilities` are those of the Transformer alone, `pooled` those of its pool with the linear models beside it, where
there are any; both before temperature scaling.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mini_llm.engine.errors import ConfigError, DataError
from mini_llm.engine.run.files import write_atomic

from ..examples import Example
from ..recipe.ensemble import FOLDER

FILE = "tables/predictions.jsonl"
DIGITS = 7  # significant digits of a probability; float32 has no more


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, C) of `names` for N rows, with the label and the source ("test.csv row 12") of each.

    pooled: whether they are those of a pool with linear models, and not of the Transformer alone.
    """

    names: list[str]
    labels: list[str]
    sources: list[str]
    probabilities: np.ndarray
    pooled: bool = False


def is_pooled(run: Path) -> bool:
    """Return whether `predict` pools the model of a run with linear models stored beside it."""
    return (run / "model" / FOLDER).is_dir()


def write_predictions(
    run: Path,
    split: str,
    examples: Sequence[Example],
    probabilities: np.ndarray,
    names: Sequence[str],
    pooled: np.ndarray | None = None,
) -> None:
    """Write tables/predictions.jsonl of a run."""
    lines = [json.dumps({"split": split, "labels": list(names)}, ensure_ascii=False)]
    columns = {"probabilities": probabilities} | ({} if pooled is None else {"pooled": pooled})
    for index, example in enumerate(examples):
        content: dict[str, Any] = {"source": example.source, "label": names[example.label]}
        for key, values in columns.items():
            content[key] = [float(f"{value:.{DIGITS}g}") for value in values[index]]
        lines.append(json.dumps(content, ensure_ascii=False))
    path = run / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))


def read_predictions(run: Path, alone: bool = False) -> Predictions:
    """Read what `predict` says of the rows that a finished run was scored on; `alone`: what the Transformer alone says.

    Raises ConfigError for a run without them, DataError for a damaged file.
    """
    path = run / FILE
    if not path.is_file():
        raise ConfigError(
            f"{run}: no {FILE}, so the predictions of this run are unknown. Name finished classifier runs, "
            "or give labelled rows that the models have not seen: --data FILE"
        )
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as file:
            head: dict[str, Any] = json.loads(next(file))
            rows = [json.loads(line) for line in file]
        pooled = is_pooled(run) and not alone
        if pooled and rows and "pooled" not in rows[0]:
            raise ConfigError(
                f"{path}: written before it held the predictions of the pool with the linear models in model/{FOLDER}, "
                "which `predict` uses. Take those of the Transformer alone (--alone), or give labelled rows "
                "(--data FILE)"
            )
        probabilities = np.array([row["pooled" if pooled else "probabilities"] for row in rows], dtype=np.float64)
        if probabilities.shape != (len(rows), len(head["labels"])) or not rows:
            raise ValueError(f"{probabilities.shape} probabilities for {len(head['labels'])} labels")
        names = [str(name) for name in head["labels"]]
        labels, sources = [str(row["label"]) for row in rows], [str(row["source"]) for row in rows]
        if not np.isfinite(probabilities).all() or not set(labels) <= set(names):
            raise ValueError("a probability that is no number, or an unknown label")
    except (KeyError, TypeError, ValueError, StopIteration, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error!r}). Train the run again, or compare with --data FILE") from None
    return Predictions(names, labels, sources, probabilities, pooled)
