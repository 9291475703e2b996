"""The most confident mistakes of a run, with the words that caused them, and its suspected label errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini_llm.engine.errors import ConfigError, DataError

from ..data import load_examples
from ..examples import Example, Splits
from ..predict import Classifier
from ..recipe.ensemble import Ensemble
from ..requested import data_of_run
from ..scores.label_errors import suspected_label_errors
from ..scores.predictions import read_predictions
from ..teacher import FOLDER
from .gradients import attribute, empty_embedding

SUSPECTS = 50
MOST_MISTAKES = 200  # with attributions, over all classes


@dataclass(frozen=True)
class Word:
    """Part of a text as the model reads it. share: its attribution in units of the largest one, from -1 to 1."""

    text: str
    score: float
    share: float


@dataclass(frozen=True)
class Mistake:
    """A row with a wrong prediction. Words with positive scores speak for `predicted`, negative ones for `label`.

    value: logit of `predicted` minus that of `label`; baseline: the same for a text without information.
    """

    source: str
    label: str
    predicted: str
    probability: float
    words: list[Word]
    value: float
    baseline: float
    truncated: bool


@dataclass(frozen=True)
class SuspectRow:
    """A row whose label is probably wrong: the probabilities of its label and of the suggested one."""

    source: str
    label: str
    suggested: str
    own: float
    other: float
    text: str


@dataclass(frozen=True)
class Errors:
    """What errors.html shows; `mistakes` by label, most confident first.

    pool: what the Transformer is pooled with in predictions, "" if with nothing.
    """

    part: str
    rows: int
    wrong: dict[str, int]
    support: dict[str, int]
    mistakes: dict[str, list[Mistake]]
    suspects: dict[str, list[SuspectRow]]
    pool: str = ""


def collect_errors(run: Path, per_class: int, alone: bool = False) -> Errors:
    """Read the run's data and predictions, and explain its `per_class` most confident mistakes of each class.

    Predictions are those of `predict`; `alone`: without the linear models stored beside the model. Raises ConfigError
    for a directory that is not a run, or whose data have changed.
    """
    data = data_of_run(run)
    classifier = Classifier(run, alone)
    splits = load_examples(data)
    if list(classifier.names) != splits.names:
        raise ConfigError(f"{run}: the labels of its data ({data.path}) have changed since it was trained")
    part, examples = ("test", splits.test) if splits.test is not None else ("validation", splits.validation)
    stored = stored_probabilities(run, examples, alone)
    if stored is None:
        probabilities = classifier.calibrated([example.text for example in examples])
    else:
        probabilities = classifier.calibration.apply(stored)
    labels = np.array([example.label for example in examples])
    wrong = np.bincount(labels[probabilities.argmax(-1) != labels], minlength=len(splits.names))
    chosen = choose_mistakes(labels, probabilities, per_class)
    mistakes = {
        splits.names[label]: [explain(classifier, examples[i], probabilities[i]) for i in rows]
        for label, rows in chosen.items()
    }
    return Errors(
        part,
        len(examples),
        dict(zip(splits.names, wrong.tolist(), strict=True)),
        dict(zip(splits.names, np.bincount(labels, minlength=len(splits.names)).tolist(), strict=True)),
        mistakes,
        suspects(run, splits, part, examples, probabilities),
        describe_pool(classifier.ensemble),
    )


def describe_pool(ensemble: Ensemble | None) -> str:
    """Return 'TF-IDF + logistic regression (weight 0.40)', or "" without linear models."""
    if ensemble is None:
        return ""
    return f"{' and '.join(member.name for member in ensemble.members)} (weight {ensemble.weight:.2f})"


def stored_probabilities(run: Path, examples: Sequence[Example], alone: bool) -> np.ndarray | None:
    """The probabilities that the run was scored with, or None if there are none of `examples`."""
    try:
        stored = read_predictions(run, alone)
    except (ConfigError, DataError):
        return None
    return stored.probabilities if stored.sources == [example.source for example in examples] else None


def choose_mistakes(labels: np.ndarray, probabilities: np.ndarray, per_class: int) -> dict[int, list[int]]:
    """The rows of the most confident mistakes of each class, most confident first, MOST_MISTAKES in all."""
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = [i for i in np.argsort(-confidence, kind="stable").tolist() if predicted[i] != labels[i]]
    found: dict[int, list[int]] = {}
    total = 0
    for i in wrong:
        rows = found.setdefault(int(labels[i]), [])
        if len(rows) < per_class and total < MOST_MISTAKES:
            rows.append(i)
            total += 1
    return {label: found[label] for label in sorted(found) if found[label]}


def explain(classifier: Classifier, example: Example, probabilities: np.ndarray) -> Mistake:
    """A mistake with the attributions of its words to logit[predicted] - logit[label]."""
    config, tokenizer = classifier.model.config, classifier.tokenizer
    encoded = classifier.encode([example.text])
    ids, predicted = encoded.tokens[0], int(probabilities.argmax())
    special = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    fixed = frozenset(i for i in (*special, config.decoder_start_token_id) if i is not None)
    empty = empty_embedding(classifier.model, tokenizer.mask_id)
    found = attribute(classifier.model, ids, predicted, example.label, fixed, empty)
    return Mistake(
        example.source,
        classifier.names[example.label],
        classifier.names[predicted],
        float(probabilities[predicted]),
        words(tokenizer, ids, found.scores),
        found.value,
        found.baseline,
        encoded.truncated > 0,
    )


def words(tokenizer: object, ids: np.ndarray, scores: np.ndarray) -> list[Word]:
    """The text of `ids` cut at spaces; a word has the sum of its tokens' scores."""
    stream = tokenizer.stream()  # ty: ignore[missing-attribute]
    found: list[tuple[str, float]] = []
    waiting = 0.0
    for token, score in zip(ids.tolist(), scores.tolist(), strict=True):
        text = stream.push(token)
        waiting += score
        if not text:  # a special token, or the beginning of a character
            continue
        if found and not text[0].isspace() and (found[-1][0].isspace() or not found[-1][0][-1].isspace()):
            found[-1] = found[-1][0] + text, found[-1][1] + waiting
        else:
            found.append((text, waiting))
        waiting = 0.0
    if found and waiting:
        found[-1] = found[-1][0] + stream.flush(), found[-1][1] + waiting
    largest = max((abs(score) for _, score in found), default=0.0) or 1.0
    return [Word(text, score, score / largest) for text, score in found]


def suspects(
    run: Path, splits: Splits, part: str, examples: Sequence[Example], probabilities: np.ndarray
) -> dict[str, list[SuspectRow]]:
    """Suspected label errors: of training rows by the teacher's out-of-fold probabilities, of scored ones by the run's.

    No model was trained on a row that it judges.
    """
    found = {}
    teacher = run / FOLDER / "targets.safetensors"
    if teacher.is_file():
        from safetensors.numpy import load

        out_of_fold = load(teacher.read_bytes())["train"]
        if len(out_of_fold) == len(splits.train):
            found["training, by a linear model out of fold"] = _suspects(splits.train, out_of_fold, splits.names)
    found[f"{part}, by this classifier"] = _suspects(examples, probabilities, splits.names)
    return {name: rows for name, rows in found.items() if rows}


def _suspects(examples: Sequence[Example], probabilities: np.ndarray, names: Sequence[str]) -> list[SuspectRow]:
    labels = np.array([example.label for example in examples])
    return [
        SuspectRow(
            examples[row.index].source,
            names[row.label],
            names[row.suggested],
            row.self_confidence,
            row.probability,
            examples[row.index].text,
        )
        for row in suspected_label_errors(labels, probabilities)[:SUSPECTS]
    ]
