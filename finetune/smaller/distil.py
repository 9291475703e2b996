"""Distil a classifier into a smaller one (Hinton et al. 2015): the student learns the teacher's probabilities.

Both distributions are softmax(logits / temperature). Labels are not read: what the teacher has learned from them is in
its probabilities, and unlabelled texts count as much as labelled ones.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from torch import Tensor, nn

from mini_llm.engine.batch import Batch, ordered_batches, to_device
from mini_llm.engine.checkpoint.format import has_checkpoint
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import content_hash, read_json, write_atomic
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.model import SequenceClassifier
from mini_llm.tokenization.save import save_tokenizer

from ..encode import collate, frame_kind, padding_id
from ..examples import Example, Splits
from ..fit import Fit
from ..predict import Classifier, find_classifier
from ..requested import check_single_label
from ..run import RUNS, finetune
from ..scores.agreement import validation_scores
from ..scores.calibration import scale
from ..scores.reliability import log_loss
from ..tasks.registry import model_task
from .config import DistilConfig, StudentConfig
from .importance import Importance, equal_importance, importance
from .shape import choose_shape, count_parameters, keep_for
from .subnetwork import subnetwork

# Tokens per rank in one training forward pass.
MICRO_BATCH_TOKENS = 16_384
# Validation texts from which the importance of heads, neurons and channels is estimated, and how many at a time.
IMPORTANCE_TEXTS, IMPORTANCE_BATCH = 256, 4
LABELS_FILE = "soft_labels.safetensors"
# Share of the budget in which the teacher labels texts, and texts that it labels between looks at the clock.
LABELS_SHARE, PORTION = 1 / 3, 256


class Student(SequenceClassifier):
    """A classifier whose logits are divided by `temperature` in training alone."""

    temperature = 1.0

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        logits = super().forward(input_ids, attention_mask, token_type_ids)
        return logits / self.temperature if self.training else logits


def distil(config: DistilConfig, runs: Path = RUNS) -> dict[str, float]:
    """Run or resume a distillation in the folder `runs`, and return the student's scores.

    Raises the errors of mini_llm.engine.errors.
    """
    check_single_label(model_task(Path(config.model)), config.model)
    find_classifier(Path(config.model))
    scores = finetune(config, runs, train_student)
    before = (read_json(Path(config.model) / "finished.json") or {}).get("scores", {})
    console = Console(stderr=True, quiet=not PartialState().is_main_process, soft_wrap=True)
    for name in ("test/accuracy", "validation/accuracy"):
        if name in scores and before.get(name):
            console.print(
                f"student {scores[name]:.1%}, teacher {before[name]:.1%} ({name}): the student has "
                f"{scores[name] / before[name]:.1%} of the teacher's accuracy"
            )
    return scores


def train_student(
    config: DistilConfig,
    source: Path,
    splits: Splits,
    processes: PartialState,
    run: RunDirectory,
    tracker: Tracker,
    console: Console,
) -> None:
    """Train a student of the classifier `source` and write run.model. Raises ConfigError."""
    started = time.perf_counter()
    teacher = Classifier(source)
    check_teacher(teacher, splits.names)
    torch.manual_seed(config.seed)
    tokenizer, pad, max_length = teacher.tokenizer, padding_id(teacher.tokenizer), teacher.max_length
    texts = [*(example.text for example in splits.train), *splits.unlabelled]
    sources = [example.source for example in splits.train]
    sources += [f"unlabelled {i}" for i in range(len(splits.unlabelled))]
    seconds = LABELS_SHARE * (config.budget_seconds or float("inf"))
    with processes.main_process_first():
        answers = soft_labels(run.path / LABELS_FILE, teacher, texts, config.student.temperature, seconds)
    known = np.flatnonzero(~np.isnan(answers[:, 0]))
    if len(known) < len(texts):
        console.print(
            f"the teacher labelled {len(known):,} of {len(texts):,} texts in {LABELS_SHARE:.0%} of the budget: the "
            "student learns from these"
        )
        texts, sources, answers = [texts[i] for i in known], [sources[i] for i in known], answers[known]
    if has_checkpoint(run.path):  # whose weights replace those that importance chooses
        found = equal_importance(teacher.model.config)
    else:
        found = measure_importance(teacher, splits.validation)
    student = build_student(teacher.model, found, config.student)
    student = student.cpu()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout_or_default
    console.print(describe(student, teacher.model), markup=False)
    training = teacher.encode(texts)
    held_out = teacher.encode([example.text for example in splits.validation])
    truth = np.array([example.label for example in splits.validation])
    fit = Fit(config, training.lengths, processes, MICRO_BATCH_TOKENS)

    def batch(rows: np.ndarray) -> Batch:
        return collate([training.tokens[i] for i in rows], answers[rows], pad, max_length)

    def held_out_batch(rows: np.ndarray) -> Batch:
        return collate([held_out.tokens[i] for i in rows], truth[rows], pad, max_length)

    def read(logits: Tensor, labels: Tensor, rows: np.ndarray) -> np.ndarray:
        return logits.float().softmax(-1).cpu().numpy()

    def evaluate(model: nn.Module) -> dict[str, float]:
        probabilities = np.empty((len(truth), len(splits.names)), dtype=np.float32)
        for rows, found in fit.predict(model, held_out.lengths, held_out_batch, read):
            probabilities[rows] = found
        return validation_scores(log_loss(truth, probabilities), truth, probabilities.argmax(-1))

    fit.resolve(student.config, run, tracker)
    kind = frame_kind(student.config.causal, student.config.is_encoder_decoder)
    fit.run(
        student,
        batch,
        evaluate,
        run,
        tracker,
        lambda directory: save_tokenizer(tokenizer, directory, kind, max_length, pad),
        metric=config.metric,
        larger_is_better=config.metric != "loss",
        seconds_used=time.perf_counter() - started,
        held_out=held_out.lengths,
        sources=sources,
        tokenizer_sha256=tokenizer.sha256,
        data_fingerprint=content_hash([*texts, *(row.text for row in splits.validation)]),
    )
    sizes = {
        "parameters": count_parameters(student.config),
        "teacher_parameters": count_parameters(teacher.model.config),
    }
    tracker.summary({"teacher": str(source), **sizes})


def check_teacher(teacher: Classifier, names: Sequence[str]) -> None:
    """Raise ConfigError if the classifier has other labels than the data, or an architecture that cannot be cut."""
    if list(teacher.names) != list(names):
        raise ConfigError(
            f"{teacher.directory}: the teacher's labels are {', '.join(teacher.names[:5])}, those of the data "
            f"{', '.join(names[:5])}. Distil on the data that the teacher was trained on"
        )
    if teacher.model.config.is_encoder_decoder:
        raise ConfigError(
            f"{teacher.directory}: an encoder-decoder can be packed (int8, int4), but not pruned or distilled"
        )


def soft_labels(
    path: Path, teacher: Classifier, texts: list[str], temperature: float, seconds: float = float("inf")
) -> np.ndarray:
    """The teacher's probabilities (N, classes) at `temperature`, float32; read from `path` when a run is resumed.

    Texts are labelled in a random order for about `seconds`; NaN for those that there was no time for.
    """
    from safetensors.numpy import load, save

    fingerprint = content_hash([*texts, temperature])
    if path.is_file():
        stored = load(path.read_bytes())
        if bytes(stored["fingerprint"]).decode() == fingerprint:
            return stored["probabilities"]
    found = np.full((len(texts), len(teacher.names)), np.nan, dtype=np.float32)
    order, started = np.random.default_rng(0).permutation(len(texts)), time.perf_counter()
    for rows in np.split(order, range(PORTION, len(texts), PORTION)):
        found[rows] = scale(teacher.probabilities([texts[i] for i in rows]), temperature)
        if time.perf_counter() - started > seconds:
            break
    stamp = np.frombuffer(fingerprint.encode(), dtype=np.uint8)
    write_atomic(path, save({"probabilities": found, "fingerprint": stamp}))
    return found


def measure_importance(classifier: Classifier, examples: Sequence[Example]) -> Importance:
    """The importance of heads, neurons and channels for the labels of up to IMPORTANCE_TEXTS examples."""
    chosen = examples[:: max(1, len(examples) // IMPORTANCE_TEXTS)][:IMPORTANCE_TEXTS]
    encoded = classifier.encode([example.text for example in chosen])
    pad, labels = padding_id(classifier.tokenizer), np.array([example.label for example in chosen])
    rows = ordered_batches(encoded.lengths, IMPORTANCE_BATCH)
    batches = (collate([encoded.tokens[i] for i in r], labels[r], pad, classifier.max_length) for r in rows)
    return importance(classifier.model, (to_device(batch, classifier.device) for batch in batches))


def build_student(teacher: SequenceClassifier, found: Importance, options: StudentConfig) -> Student:
    """A student of the size that `options` ask for, made of the most important parts of the teacher."""
    shape = choose_shape(teacher.config, options.share, options.layers, options.hidden_size)
    part = subnetwork(teacher, keep_for(shape, teacher.config, found))
    student = Student(replace(part.config))
    student.load_state_dict(part.state_dict())
    student.temperature = options.temperature
    return student


def describe(student: SequenceClassifier, teacher: SequenceClassifier) -> str:
    config, small, large = student.config, count_parameters(student.config), count_parameters(teacher.config)
    return (
        f"student: {config.num_hidden_layers} layers of {config.hidden_size} channels, {config.num_attention_heads} "
        f"heads of {config.head_dim}: {small:,} parameters, {small / large:.0%} of the teacher's {large:,}"
    )
