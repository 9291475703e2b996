"""Score a trained classifier beside baselines, and record tables for the report."""

from typing import TYPE_CHECKING, Any

from rich.console import Console

from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.tracker import Tracker

from .config import FinetuneConfig
from .examples import Splits
from .predict import Classifier

if TYPE_CHECKING:
    from .metrics import Scores

CONFUSION_LIMIT = 50  # labels; larger confusion matrices are not saved


def score_run(
    config: FinetuneConfig, splits: Splits, run: RunDirectory, tracker: Tracker, console: Console
) -> dict[str, float]:
    """Score the saved run.model and the baselines on the test split, or on validation if there is no test split."""
    from .baselines import compute_baselines
    from .metrics import compute_scores

    part, examples = ("test", splits.test) if splits.test is not None else ("validation", splits.validation)
    classifier = Classifier(run.model)
    probabilities = classifier.probabilities([example.text for example in examples], config.evaluation_batch_size)
    own = compute_scores([example.label for example in examples], probabilities.argmax(-1), splits.names)
    console.print(f"{part}: {own}", markup=False)
    rows = [_row(run.path.name, own, False)]
    for baseline in compute_baselines(splits, config.seed):
        console.print(f"{part}, {baseline.name}: {baseline.scores}", markup=False)
        rows.append(_row(baseline.name, baseline.scores, True))
    tracker.table("per_class", ["name", "precision", "recall", "f1", "support"], own.class_rows())
    if len(splits.names) <= CONFUSION_LIMIT:
        tracker.table("confusion", splits.names, own.confusion)
    wrong: list[list[Any]] = [
        [
            examples[i].source,
            splits.names[examples[i].label],
            splits.names[int(p.argmax())],
            float(p.max()),
            examples[i].text[:400],
        ]
        for i, p in enumerate(probabilities)
        if int(p.argmax()) != examples[i].label
    ]
    wrong.sort(key=lambda row: -row[3])
    tracker.table("errors", ["source", "label", "predicted", "probability", "text"], wrong[:50])
    numbers = {f"{part}/{name}": value for name, value in own.numbers().items()}
    tracker.summary(
        {
            **numbers,
            "objective": "classification",
            "scores": rows,
            "scored_on": part,
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


def _row(name: str, scores: "Scores", baseline: bool) -> dict[str, Any]:
    return {"name": name, **scores.numbers(), "baseline": baseline}
