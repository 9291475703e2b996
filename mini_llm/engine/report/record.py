"""Read a run directory, and format its values for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.files import open_regular
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.run.liveness import is_live
from mini_llm.engine.run.progress import human_time
from mini_llm.engine.run.state import Counts, Environment, Finished, Summary, Table, Tokens, read_object, read_state

RUN_FILES = ("config.yaml", "summary.json", "metrics.jsonl")
_KINDS = {
    "tokenizer": "Tokenizer",
    "pretrain": "Pretraining",
    "finetune": "Fine-tuning",
    "ladder": "Ladder",
    "sweep": "Sweep",
    "cross-validation": "Cross-validation",
}
_OBJECTIVES = {
    "causal": "language model",
    "masked": "masked language model",
    "masked and next sentence": "masked language model",
    "span corruption": "encoder-decoder",
    "text to text": "encoder-decoder on pairs",
    "classification": "classifier",
    "multi_label": "multi-label classifier",
    "regression": "regression",
    "ordinal": "ordinal classifier",
    "pairs": "classifier of pairs",
    "tokens": "named entities",
    "questions": "question answering",
}

# Scores in column order, then other figures.
LABELS = {
    "bpb": "bits per byte",
    "loss": "loss (nats)",
    "ppl": "perplexity",
    "masked_accuracy": "masked accuracy",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "log_loss": "log loss (nats)",
    "ece": "calibration error",
    "micro_f1": "micro F1",
    "exact_match": "exact match",
    "hamming_loss": "wrong labels",
    "rmse": "RMSE",
    "mae": "mean absolute error",
    "r2": "R squared",
    "pearson": "Pearson's r",
    "rank_mae": "mean distance in ranks",
    "kappa": "weighted kappa",
    "entity_f1": "entity F1",
    "entity_precision": "entity precision",
    "entity_recall": "entity recall",
    "word_accuracy": "word accuracy",
    "answer_f1": "answer F1",
    "examples": "examples",
    "bleu": "BLEU",
    "chrf": "chrF",
    "exact": "exact matches (%)",
    "bytes_per_token": "bytes per token",
    "tokens_per_word": "tokens per word",
    "byte_fallback": "single-byte tokens",
    "coverage": "characters covered",
    "log_loss_calibrated": "log loss after calibration",
    "ece_calibrated": "calibration error after calibration",
    "aurc": "area under the risk-coverage curve",
    "parameters": "parameters",
    "steps": "steps",
    "tokens": "tokens trained on",
    "epochs": "passes over the text",
    "train_tokens": "tokens of the training text",
    "validation_bytes": "bytes of the validation text",
    "train_pairs": "training pairs",
    "train_seconds": "training time",
    "vocab_size": "vocabulary",
}
_NO_SCORE = {
    "parameters",
    "steps",
    "tokens",
    "epochs",
    "train_tokens",
    "validation_bytes",
    "train_pairs",
    "train_seconds",
    "vocab_size",
    "log_loss_calibrated",
    "ece_calibrated",
    "aurc",
}
_PERCENT = {
    *("accuracy", "masked_accuracy", "coverage", "byte_fallback", "micro_f1", "exact_match", "hamming_loss"),
    *("entity_f1", "entity_precision", "entity_recall", "word_accuracy", "answer_f1"),
}
_TOKENIZER = ("bytes_per_token", "tokens_per_word", "byte_fallback", "coverage")
_UNIGRAM = ("bpb", "loss")
_PAIRS = ("bleu", "chrf", "exact")
_SHOWN_ELSEWHERE = {"job_type", "objective", "byte_baseline_tokens_per_word", *(f"unigram_{key}" for key in _UNIGRAM)}


@dataclass(frozen=True)
class ScoreTable:
    """Scores next to baselines: rows of text, whose first cell is a name; `baseline[i]` marks baselines."""

    columns: list[str]
    rows: list[list[str]]
    baseline: list[bool]


class Run:
    """The content of a run directory. A missing or damaged file reads as empty; a damaged one is named on stderr."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.name = self.path.resolve().name

    @cached_property
    def summary(self) -> dict[str, Any]:
        return read_object(self.path / "summary.json", Summary)

    @cached_property
    def finished(self) -> dict[str, Any]:
        return read_object(self.path / "finished.json", Finished)

    @cached_property
    def environment(self) -> dict[str, Any]:
        return read_object(self.path / "environment.json", Environment)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, then of timing.jsonl."""
        return read_rows(self.path / "metrics.jsonl") + read_rows(self.path / "timing.jsonl")

    def text(self, name: str) -> str:
        try:
            with open_regular(self.path / name) as file:
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def table(self, name: str) -> dict[str, Any] | None:
        """{"columns", "rows"} of tables/NAME.json, or None."""
        kind = {"confusion": Counts, "pieces": Tokens}.get(name, Table)
        found = read_state(self.path / "tables" / f"{name}.json", kind)
        return None if found is None else {"columns": found.columns, "rows": found.rows}

    @cached_property
    def table_names(self) -> list[str]:
        return sorted(path.stem for path in (self.path / "tables").glob("*.json"))

    @property
    def kind(self) -> str:
        """For example "Pretraining: language model"."""
        stage = _KINDS.get(str(self.summary.get("job_type") or self.environment.get("stage")), "Run")
        objective = _OBJECTIVES.get(self.summary.get("objective", ""))
        return f"{stage}: {objective}" if objective else stage

    @property
    def status(self) -> str:
        if self.finished:
            return f"finished {show_date(str(self.finished.get('finished', '')))}"
        step = max((row["step"] for row in self.rows if isinstance(row.get("step"), int)), default=None)
        state = "running" if is_live(self.path) else "stopped"
        return state if step is None else f"{state}, step {step:,}"

    @property
    def seconds(self) -> float | None:
        """Training time if known, else the wall time of the last launch."""
        return self.summary.get("train_seconds", self.finished.get("seconds"))

    @property
    def location(self) -> Path:
        """The directory of the result: the model directory, or the run directory for a tokenizer."""
        model = self.path / "model"
        return model if model.is_dir() else self.path

    def score_rows(self) -> list[dict[str, Any]]:
        """Rows {"name", scores..., "baseline": True for a baseline}, the run's own first; empty without scores."""
        rows = self.summary.get("scores")
        if not isinstance(rows, list):
            rows = self._unsupervised_scores()
        return [row for row in rows if isinstance(row, dict)]

    def scores(self) -> ScoreTable | None:
        """Scores next to baselines, or None without scores."""
        return score_table(self.score_rows(), all_intervals=True)

    def _unsupervised_scores(self) -> list[dict[str, Any]]:
        """Rows of a pretraining run with the unigram entropy, or of a tokenizer with plain bytes, as the baseline."""
        found = self.summary
        if "bytes_per_token" in found:
            own = {key: found[key] for key in _TOKENIZER if key in found}
            words = found.get("byte_baseline_tokens_per_word")
            plain = {"bytes_per_token": 1.0, "tokens_per_word": words, "byte_fallback": 1.0}
            return [{"name": self.name, **own}, {"name": "plain bytes", **plain, "baseline": True}]
        own = {key: found[f"val/{key}"] for key in LABELS if f"val/{key}" in found}
        # Pairs are scored on the test pairs where there are any.
        own |= {key: found[f"test/{key}"] for key in _PAIRS if f"test/{key}" in found}
        if found.get("objective") == "masked" and "accuracy" in own:
            own["masked_accuracy"] = own.pop("accuracy")
        unigram = {key: found[f"unigram_{key}"] for key in _UNIGRAM if f"unigram_{key}" in found}
        if not own:
            return []
        line = [{"name": "unigram entropy (baseline)", **unigram, "baseline": True}] if unigram else []
        part = "test" if "test/copy_bleu" in found else "val"
        copy = {key: found[f"{part}/copy_{key}"] for key in _PAIRS if f"{part}/copy_{key}" in found}
        line += [{"name": "copying the source (baseline)", **copy, "baseline": True}] if copy else []
        return [{"name": self.name, **own}, *line]

    def headline(self) -> str:
        """The most important score, for a list of runs."""
        scores = self.summary.get("scores")
        if isinstance(scores, list) and scores and isinstance(scores[0], dict) and "accuracy" in scores[0]:
            return f"accuracy {_score('accuracy', scores[0])}"
        keys = (
            "test/bleu",
            "val/bleu",
            "val/bpb",
            "val/masked_accuracy",
            "val/accuracy",
            "val/loss",
            "bytes_per_token",
        )
        for key in keys:
            if isinstance(self.summary.get(key), (int, float)):
                name = key.rpartition("/")[2]
                return f"{show(name, self.summary[key])} {LABELS[name]}"
        return ""

    def figures(self) -> list[tuple[str, str]]:
        """(label, value) of the other numbers and texts in summary.json."""
        scored = self.scores() is not None
        shown = []
        for key, value in self.summary.items():
            if key in _SHOWN_ELSEWHERE or isinstance(value, (dict, list)) or value is None:
                continue
            if scored and (key in _TOKENIZER or key.startswith(("val/", "validation/", "test/"))):
                continue
            shown.append((LABELS.get(key, key.replace("_", " ")), show(key, value)))
        return shown


def score_table(rows: list[dict[str, Any]], all_intervals: bool = False) -> ScoreTable | None:
    """Format rows of `Run.score_rows`, from one run or several, as text; None without scores.

    Shares such as the accuracy show their interval, the other scores only with `all_intervals`.
    """
    keys = [key for key in LABELS if key not in _NO_SCORE and any(key in row for row in rows)]
    if not rows or not keys:
        return None
    cells = [[str(row.get("name", "")), *[_score(key, row, all_intervals) for key in keys]] for row in rows]
    return ScoreTable(["", *[LABELS[key] for key in keys]], cells, [bool(row.get("baseline")) for row in rows])


def show(key: str, value: Any) -> str:
    """Format a value of summary.json."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    if key in _PERCENT:
        return f"{value:.1%}" if value in (0, 1) or 0.005 <= value <= 0.995 else f"{value:.3%}"
    if key in _PAIRS:
        return f"{value:.1f}"
    if key.endswith("seconds"):
        return human_time(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def show_date(text: str) -> str:
    """2026-11-23T15:03:05+00:00 -> 2026-11-23 15:03."""
    return text[:16].replace("T", " ")


def find_runs(root: Path | str) -> list[Path]:
    """The run directories directly below `root`, by name. Raises ConfigError if there are none."""
    root = Path(root)
    found = sorted(p for p in root.glob("*") if p.is_dir() and any((p / name).is_file() for name in RUN_FILES))
    if not found:
        raise ConfigError(f"{root}: no runs here yet. Create some with `make pipeline`, or name run directories")
    return found


def _score(key: str, row: Mapping[str, Any], all_intervals: bool = False) -> str:
    if row.get(key) is None:
        return ""
    values = (row[key], row.get(f"{key}_low"), row.get(f"{key}_high"))
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) == 3 and (all_intervals or key in _PERCENT):
        return with_interval(key, *numbers)
    return show(key, row[key])


def with_interval(key: str, value: float, low: float, high: float) -> str:
    """Format a score with its interval, such as "73.1% (70.0 to 76.0)"."""
    if key in _PERCENT:
        return f"{value:.1%} ({100 * low:.1f} to {100 * high:.1f})"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
