"""TextClassifier: fine-tuning with the interface of scikit-learn.

    from mini_llm.sklearn import TextClassifier
    classifier = TextClassifier(model="runs/mlm", budget="30s").fit(texts, labels)
    print(classifier.predict(["a fine film"]), classifier.predict_proba(["a fine film"]))

It works in cross_val_score, GridSearchCV and Pipeline. Training, evaluation and the run directory are those of
`python -m finetune`.
"""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from mini_llm import stages
from mini_llm.api import RUNS, finetune_in
from mini_llm.engine.errors import DataError
from mini_llm.engine.run.files import write_atomic


class TextClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of texts, fine-tuned from a pretrained model.

    model: a run, or a Hugging Face directory
    budget: wall time of training ("30s", "10m", "4h")
    run: name under runs/; None trains in a temporary directory, which is deleted
    seed: of the training and of the split
    settings: any other setting of `python -m finetune`, such as {"optim.lr": 1e-4, "epochs": 3}
    batch_size: texts per forward pass in prediction
    verbose: print the log of the training to standard error

    After `fit`, classes_ holds the distinct labels in ascending order, and scores_ the scores on the texts that the
    training set aside.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "runs/gpt",
        budget: str | None = "2m",
        run: str | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.budget = budget
        self.run = run
        self.seed = seed
        self.settings = settings
        self.batch_size = batch_size
        self.verbose = verbose

    # scikit-learn calls the texts X.
    def fit(self, X: Iterable[str], y: Iterable[Hashable]) -> "TextClassifier":
        """Train on texts X and their labels y, values of any hashable type. Returns self.

        Raises DataError for a text that is not a string, a missing label or a single label; ConfigError for a `run`
        that exists with other data or settings.
        """
        texts, labels = as_texts(X), list(y)
        if len(texts) != len(labels):
            raise DataError(f"{len(texts):,} texts but {len(labels):,} labels: give one label for each text")
        classes = distinct_labels(labels)
        if len(classes) < 2:
            raise DataError(f"{len(texts):,} texts have {len(classes)} labels: classification needs at least two")
        names = dict(zip(classes, label_names(classes), strict=True))
        rows = [{"text": text, "label": names[label]} for text, label in zip(texts, labels, strict=True)]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        with tempfile.TemporaryDirectory(prefix="mini-llm-") as temporary:
            runs = Path(temporary) if self.run is None else RUNS
            # The name tells the content, so that the same fit again continues the run, and another one is refused.
            data = runs / f"{self.run or 'data'}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.jsonl"
            runs.mkdir(exist_ok=True)
            write_atomic(data, content)
            with contextlib.nullcontext() if self.verbose else contextlib.redirect_stderr(io.StringIO()):
                finished = finetune_in(runs, self._all_settings(data))
            self._classifier = stages.load("finetune", "predict").Classifier(finished.path)
        self.scores_ = finished.scores
        self.classes_ = as_array(classes)
        outputs = {name: index for index, name in enumerate(self._classifier.names)}
        self._outputs = [outputs[name] for name in names.values()]
        return self

    def predict_proba(self, X: Iterable[str]) -> np.ndarray:
        """Return the probability of each class for each text, float64 (texts, classes), in the order of classes_.

        Probabilities are calibrated on the texts that the training set aside.
        """
        check_is_fitted(self, "classes_")
        return self._classifier.calibrated(as_texts(X), self.batch_size).astype(np.float64)[:, self._outputs]

    def predict(self, X: Iterable[str]) -> np.ndarray:
        """Return the most probable class of each text, (texts,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(-1)]

    def _all_settings(self, data: Path) -> dict[str, Any]:
        given: dict[str, Any] = {"model": os.fspath(self.model), "budget": self.budget, "run": self.run or "classifier"}
        given |= {"seed": self.seed, "data.seed": self.seed, "data.path": str(data)}
        if self.run is None:
            given["tracking.wandb"] = "disabled"
        return given | dict(self.settings or {})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags


def as_texts(texts: Iterable[str]) -> list[str]:
    """Return a list of texts: of a list, an array, or a column of a table. Raises DataError for anything else."""
    if isinstance(texts, (str, bytes)):
        raise DataError("a single text: put it into a list")
    found = list(texts)
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise DataError(f"text {index} is a {type(text).__name__}: give a list or one column of strings")
    return found


def distinct_labels(labels: Sequence[Hashable]) -> list[Hashable]:
    """Return the distinct labels, sorted by value, or by type and representation if they do not compare.

    Raises DataError for a missing label (None, NaN) and one that is not hashable.
    """
    for index, label in enumerate(labels):
        if label is None or label != label:
            raise DataError(f"label {index} is missing ({label}): remove its text, or give it a label")
    try:
        found = set(labels)
    except TypeError as error:
        raise DataError(f"labels must be hashable, such as strings, numbers or tuples: {error}") from None
    try:
        return sorted(found)  # ty: ignore[invalid-argument-type]
    except TypeError:
        return sorted(found, key=lambda label: (type(label).__name__, repr(label)))


def label_names(classes: Sequence[Hashable]) -> list[str]:
    """Return the name of each class in the model directory: its text, or "class 0", "class 1", ... if texts clash."""
    names = [str(label) for label in classes]
    kept = [name.strip() for name in names if "\ufffd" not in name and name.strip()]
    return names if len(set(kept)) == len(names) and kept == names else [f"class {i}" for i in range(len(names))]


def as_array(classes: Sequence[Hashable]) -> np.ndarray:
    """Return the classes as an array of their own type, or of objects where numpy would change a value."""
    array = np.array([0])
    with contextlib.suppress(ValueError):
        array = np.array(classes)
    if array.shape != (len(classes),) or array.tolist() != list(classes):
        array = np.empty(len(classes), dtype=object)
        for index, label in enumerate(classes):
            array[index] = label
    return array
