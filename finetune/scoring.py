"""Score a trained classifier beside baselines, calibrate it on validation, and record tables for the report."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.tracking.tracker import Tracker

from .config import FinetuneConfig
from .data_config import BUILT_IN
from .examples import Example, Splits
from .linear import LinearClassifier
from .predict import Classifier
from .recipe.ensemble import FEW_HELD_OUT, Ensemble, choose_weight, linear_probabilities, mix, write_ensemble
from .scores.calibration import Calibration, fit_temperature, write_calibration
from .teacher import FOLDER, pool, read_members

if TYPE_CHECKING:
    from .metrics import Scores

CONFUSION_LIMIT = 50  # labels; larger confusion matrices are not saved


def score_run(
    config: FinetuneConfig, splits: Splits, run: RunDirectory, tracker: Tracker, console: Console
) -> dict[str, float]:
    """Score the saved run.model and the baselines on the test split, or on validation if there is no test split.

    Writes calibration.json into run.model: the temperature and the abstention thresholds, chosen on validation. Where
    validation gains by the linear teacher, writes the ensemble too (recipe/ensemble.py), which has a row of its own.
    """
    from .baselines import compute_baselines
    from .metrics import compute_scores
    from .scores.intervals import few_rows_advice, probability_intervals
    from .scores.predictions import write_predictions

    part, examples = ("test", splits.test) if splits.test is not None else ("validation", splits.validation)
    classifier = Classifier(run.model)
    held_out = _probabilities(classifier, splits.validation, config)
    probabilities = held_out if splits.test is None else _probabilities(classifier, examples, config)
    labels, held_out_labels = _labels(examples), _labels(splits.validation)
    calibration = calibrate(held_out_labels, held_out)
    write_calibration(run.model, calibration)
    own = compute_scores(labels, probabilities.argmax(-1), splits.names, probabilities)
    calibrated = compute_scores(labels, probabilities.argmax(-1), splits.names, calibration.apply(probabilities))
    console.print(f"{part}: {own}", markup=False)
    few = few_rows_advice(len(examples), len(examples) + len(splits.train)) if splits.test is None else None
    if few and config.data.path != BUILT_IN:
        console.print(few, markup=False)
    for note in _describe(calibration, own, calibrated, part):
        console.print(note, markup=False)
    rows = [_row(run.path.name, own, False, **probability_intervals(labels, probabilities))]
    members, texts = read_members(run.path / FOLDER), [example.text for example in examples]
    taught = [(member, member.probabilities(texts)) for member in members]
    baselines = compute_baselines(splits, config.seed, taught)
    best_of_run, pooled = own.accuracy, None
    if members:
        linear = pool([values for _, values in taught])
        if (ensemble := choose_ensemble(config, members, splits, held_out)) is not None:
            write_ensemble(run.model, ensemble)
            pooled = mix(probabilities, linear, ensemble.weight)
            scores = compute_scores(labels, pooled.argmax(-1), splits.names, ensemble.calibration.apply(pooled))
            chosen = "chosen on validation" if len(held_out_labels) >= FEW_HELD_OUT else "too few texts to choose it"
            console.print(
                f"{part}, pooled with the linear models (weight {ensemble.weight:.2f}, {chosen}): {scores}",
                markup=False,
            )
            name = f"{run.path.name}, pooled with its linear teacher"
            rows.append(_row(name, scores, False, **probability_intervals(labels, pooled)))
            best_of_run = max(best_of_run, scores.accuracy)
    for baseline in baselines:
        console.print(f"{part}, {baseline.name}: {baseline.scores}", markup=False)
        rows.append(_row(baseline.name, baseline.scores, True))
    best = max(baselines, key=lambda baseline: baseline.scores.accuracy)
    if best.scores.accuracy >= best_of_run:
        console.print(
            f"{best.name} is as accurate here ({best.scores.accuracy:.1%} against {best_of_run:.1%}) and far cheaper: "
            "use it, or give this model a longer budget, data.unlabelled=FILE, or a better pretrained model",
            markup=False,
        )
    write_predictions(run.path, part, examples, probabilities, splits.names, pooled)
    figures = _record_tables(splits, examples, probabilities, held_out, own, calibration, tracker)
    numbers = {f"{part}/{name}": value for name, value in own.numbers().items()}
    tracker.summary(
        {
            **numbers,
            "objective": "classification",
            "scores": rows,
            "scored_on": part,
            "temperature": calibration.temperature,
            "log_loss_calibrated": calibrated.log_loss,
            "ece_calibrated": calibrated.ece,
            "calibrated_on": calibration.fitted_on + (" (the scored rows themselves)" if splits.test is None else ""),
            **figures,
            "task": splits.description,
            "labels": splits.names,
            "pretrained": config.model,
            "weights": config.weights,
            "parameters": sum(parameter.numel() for parameter in classifier.model.parameters()),
            "model_directory": str(run.model),
        }
    )
    tracker.artifact(run.path.name, "model", run.model, numbers)
    return numbers


def choose_ensemble(
    config: FinetuneConfig, members: list[LinearClassifier], splits: Splits, held_out: np.ndarray
) -> Ensemble | None:
    """The pool of the Transformer, with probabilities `held_out` (N, C) on validation, and `members`; None if the
    Transformer alone is better there."""
    if config.ensemble == "none":
        return None
    labels = _labels(splits.validation)
    linear = linear_probabilities(members, [example.text for example in splits.validation])
    weight = choose_weight(held_out, linear, labels)
    return Ensemble(members, weight, calibrate(labels, mix(held_out, linear, weight))) if weight > 0 else None


def calibrate(labels: np.ndarray, probabilities: np.ndarray, fitted_on: str = "validation") -> Calibration:
    """Fit the temperature to `probabilities` (N, C), then choose the abstention thresholds on the scaled ones."""
    from .scores.reliability import expected_calibration_error
    from .scores.selective import PRECISIONS, threshold_for

    fitted = Calibration(fit_temperature(labels, probabilities), fitted_on=fitted_on, examples=len(labels))
    scaled = fitted.apply(probabilities)
    found = {wanted: threshold_for(labels, scaled, wanted) for wanted in PRECISIONS}
    return replace(
        fitted,
        thresholds={wanted: threshold for wanted, threshold in found.items() if threshold is not None},
        ece_before=expected_calibration_error(labels, probabilities),
        ece_after=expected_calibration_error(labels, scaled),
    )


def _record_tables(
    splits: Splits,
    examples: list[Example],
    probabilities: np.ndarray,
    held_out: np.ndarray,
    own: "Scores",
    calibration: Calibration,
    tracker: Tracker,
) -> dict[str, float]:
    """Write the tables of the report, and return figures for the summary."""
    from .scores import tables
    from .scores.selective import aurc

    labels, names, part = _labels(examples), splits.names, "validation" if splits.test is None else "test"
    tracker.table("per_class", *tables.per_class_table(own, probabilities, labels))
    if len(names) <= CONFUSION_LIMIT:
        tracker.table("confusion", names, own.confusion)
    tracker.table("reliability", *tables.reliability_table(labels, probabilities, calibration))
    tracker.table("risk_coverage", *tables.risk_coverage_table(labels, calibration.apply(probabilities)))
    tracker.table("precision_recall", *tables.precision_recall_table(labels, probabilities, names))
    tracker.table("abstention", *tables.abstention_table(labels, probabilities, calibration, part))
    tracker.table("errors", *tables.errors_table(examples, probabilities, names))
    # No model was trained on these rows, so that their probabilities are out of fold.
    unseen, values = (examples, probabilities)
    if splits.test is not None:
        unseen, values = splits.validation + examples, np.concatenate([held_out, probabilities])
    tracker.table("suspected_label_errors", *tables.suspects_table(unseen, values, names))
    return {"aurc": aurc(labels, calibration.apply(probabilities))}


def _describe(calibration: Calibration, own: "Scores", calibrated: "Scores", part: str) -> list[str]:
    """Lines that say what calibration changed and which precisions an abstaining classifier reaches."""
    same = " (the same rows, so that this flatters it)" if part == calibration.fitted_on else ""
    lines = [
        f"calibration: temperature {calibration.temperature:.2f}, fitted on {calibration.examples:,} "
        f"{calibration.fitted_on} examples{same}; {part} ECE {own.ece:.3f} before, {calibrated.ece:.3f} after"
    ]
    for wanted, threshold in calibration.thresholds.items():
        lines.append(
            f"precision {wanted:.0%}: answer where the probability is at least {threshold.probability:.3f}, "
            f"which is {threshold.coverage:.0%} of {calibration.fitted_on}"
        )
    return lines


def _probabilities(classifier: Classifier, examples: list[Example], config: FinetuneConfig) -> np.ndarray:
    return classifier.probabilities([example.text for example in examples], config.evaluation_batch_size)


def _labels(examples: list[Example]) -> np.ndarray:
    return np.array([example.label for example in examples])


def _row(name: str, scores: "Scores", baseline: bool, **more: tuple[float, float]) -> dict[str, Any]:
    """One row of the table of scores, with the intervals of macro F1, MCC and those given in `more`."""
    from .scores.intervals import confusion_intervals, with_intervals

    numbers = with_intervals(scores.numbers(), {**confusion_intervals(scores.confusion), **more})
    return {"name": name, **numbers, "baseline": baseline}
