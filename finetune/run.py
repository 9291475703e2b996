"""One fine-tuning run: labelled texts, a pretrained model with a new head, the loop, scores beside baselines."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from rich.console import Console
from torch import Tensor, nn

from mini_llm.engine.batch import Batch, LengthBatches, ordered_batches, to_device
from mini_llm.engine.config import load_config
from mini_llm.engine.device import default_device
from mini_llm.engine.distributed.processes import make_accelerator, start_processes
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.loop import train
from mini_llm.engine.loss import cross_entropy_sum
from mini_llm.engine.replay import Replay
from mini_llm.engine.run.directory import RunDirectory, find_model
from mini_llm.engine.run.files import content_hash
from mini_llm.engine.run.tracker import Tracker
from mini_llm.engine.settings import HARMLESS
from mini_llm.model import SequenceClassifier, load_model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.model.huggingface.layouts import LAYOUTS
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer

from .config import FinetuneConfig
from .data import load_examples
from .encode import EncodedTexts, collate, encode_texts, padding_id
from .examples import Example, Splits
from .predict import Classifier

if TYPE_CHECKING:
    from .metrics import Scores

RUNS = Path("runs")
# Tokens in one forward pass with gradients, per rank, when micro_batch_size is not given.
MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 65_536}
CONFUSION_LIMIT = 50


def main(path: Path | None, overrides: Sequence[str]) -> None:
    finetune(load_config(FinetuneConfig, path, tuple(overrides)))


def finetune(config: FinetuneConfig) -> dict[str, float]:
    """Run `config` to its end, or go on with it; returns the final scores. Raises the errors of mini_llm/engine/errors.py."""
    processes = start_processes(config.runtime)
    main_process = processes.is_main_process
    console = Console(stderr=True, quiet=not main_process, soft_wrap=True)
    tree = config.model_dump(mode="json")
    source = find_pretrained(Path(config.model))
    with RunDirectory(RUNS / config.run_name, main_process=main_process) as run:
        for note in run.compare_config(tree, HARMLESS):
            console.print(note, markup=False)
        if run.finished:
            console.print(run.describe_finished(), markup=False)
            return run.finished["scores"]
        run.record(tree, "finetune")
        # Hub datasets are downloaded once, by the main process.
        with processes.main_process_first():
            splits = load_examples(config.data)
        for note in (splits.description, *splits.notes):
            console.print(note, markup=False)
        with Tracker(run.path, config.tracking, "finetune", tree, main_process) as tracker:
            _train(config, source, splits, processes, run, tracker, console)
            scores: dict[str, float] = {}
            if main_process:
                scores = _score(config, splits, run, tracker, console)
                run.finish(scores)
        processes.wait_for_everyone()
        return scores


def replay(path: Path, step: int, dump: Path | None) -> None:
    """Compute `step` of the run at `path` again. Raises ConfigError."""
    run = RunDirectory(path, main_process=False)
    config = load_config(FinetuneConfig, path / "config.yaml")
    processes = start_processes(config.runtime)
    source = find_pretrained(Path(config.model))
    with processes.main_process_first():
        splits = load_examples(config.data)
    again = Replay(step, load_tokenizer(source).decode, dump)
    with Tracker(path, config.tracking, "finetune", {}, main_process=False) as tracker:
        _train(config, source, splits, processes, run, tracker, Console(quiet=True), again)


def find_pretrained(path: Path) -> Path:
    """The model directory at `path`, or in the run there. Raises CheckpointError or ModelDirectoryError."""
    directory = find_model(path)
    if directory is None:
        raise CheckpointError(
            f"{path}: no pretrained model there (no config.json, no model/config.json). "
            "Make one with `make pretrain`, or name a directory: --init DIR"
        )
    family = read_config(directory)["model_type"]
    able = [name for name, layout in LAYOUTS.items() if "classifier" in layout.architectures.values()]
    if family not in able:
        raise CheckpointError(
            f"{directory}: a {family} model, and transformers has no classifier of that family. "
            f"Take one of {', '.join(able)}"
        )
    return directory


def load_classifier(config: FinetuneConfig, source: Path, names: list[str], tokenizer: Any) -> SequenceClassifier:
    """The pretrained trunk with a new classification head; or the same architecture untrained.

    Its config gets the padding of our batches, by which transformers finds the end of a text. Raises CheckpointError
    when the tokenizer has more tokens than the model.
    """
    changes = {"id2label": dict(enumerate(names)), "dropout": config.dropout, "pad_token_id": padding_id(tokenizer)}
    model = load_model(source, head="classifier", **changes)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model {model.config.vocab_size:,}: "
            "they are not of the same model. Copy the directory again"
        )
    return SequenceClassifier(model.config) if config.weights == "random" else model


def describe_start(source: Path, model: SequenceClassifier) -> list[str]:
    """What is new in the classifier, and which tensors of `source` have no place in it."""
    notes = [f"{source}: newly initialised: {', '.join(model.newly_initialized) or 'nothing'}"]
    if model.left_behind:
        notes.append(f"{source}: left behind: {', '.join(model.left_behind)}")
    return notes


def _train(
    config: FinetuneConfig,
    source: Path,
    splits: Splits,
    processes: PartialState,
    run: RunDirectory,
    tracker: Tracker,
    console: Console,
    loop: Callable[..., dict[str, float]] = train,
) -> None:
    tokenizer = load_tokenizer(source)
    torch.manual_seed(config.seed)
    model = load_classifier(config, source, splits.names, tokenizer)
    for note in describe_start(source, model) if config.weights == "pretrained" else ():
        console.print(note, markup=False)
    max_length = min(
        config.data.max_length or model.config.max_position_embeddings, model.config.max_position_embeddings
    )
    training = _encode(tokenizer, splits.train, model, max_length)
    held_out = _encode(tokenizer, splits.validation, model, max_length)
    beginning = " ".join(tokenizer.piece(i) for i in training.tokens[0][:8])
    console.print(
        f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens; the first text begins {beginning}", markup=False
    )
    if training.truncated:
        share = training.truncated / len(splits.train)
        console.print(f"{share:.0%} of the training texts are longer than {max_length} tokens: their beginning is read")

    labels = np.array([example.label for example in splits.train])
    ranks = processes.num_processes
    device = default_device(config.runtime.device)
    accumulation = _accumulation(config, training.lengths, ranks, device)

    def dealt_to(rank: int) -> LengthBatches:
        return LengthBatches(training.lengths, config.batch_size, config.seed, ranks, rank, accumulation)

    batches = dealt_to(processes.process_index)
    accelerator = make_accelerator(
        config.runtime, accumulation, max(1, config.batch_size // (accumulation * ranks)), config.optim.max_grad_norm
    )
    pad = padding_id(tokenizer)

    def batch(step: int) -> list[Batch]:
        return [
            collate([training.tokens[i] for i in rows], labels[rows], pad, max_length) for rows in batches.batch(step)
        ]

    answers = np.array([example.label for example in splits.validation])

    def evaluate(model: nn.Module) -> dict[str, float]:
        # The evaluate package takes seconds to import: not before the first step.
        from .metrics import compute_scores

        loss, predictions = _predict(
            model, held_out, answers, pad, max_length, config.evaluation_batch_size, accelerator
        )
        scores = compute_scores(answers, predictions, splits.names)
        return {
            "val/loss": loss,
            "val/accuracy": scores.accuracy,
            "val/macro_f1": scores.macro_f1,
            "val/mcc": scores.mcc,
        }

    steps = max(1, round(config.epochs * batches.steps_per_epoch))
    optim = config.optim.for_width(model.config.hidden_size)
    mean_length = float(training.lengths.mean())
    console.print(
        f"{len(splits.train):,} training and {len(splits.validation):,} validation texts, {len(splits.names)} labels; "
        f"{steps:,} steps of {config.batch_size} are {config.epochs:g} epochs; learning rate {optim.lr:.2g}; "
        f"budget {config.budget}"
    )
    kind = "seq2seq" if model.config.is_encoder_decoder else "causal" if model.config.causal else "masked"
    loop(
        model,
        batch,
        evaluate,
        config.model_copy(update={"max_steps": min(config.max_steps or steps, steps), "optim": optim}),
        accelerator,
        run,
        tracker,
        lambda directory: save_tokenizer(tokenizer, directory, kind, max_length, pad),
        metric=f"val/{config.metric}",
        larger_is_better=config.metric != "loss",
        evaluation_in_steps=held_out.lengths.sum() / (config.batch_size * mean_length),
        flops_per_token=lambda share: flops_per_token(model.config, round(mean_length), 0.0),
        documents=lambda step, rank, _: [[splits.train[i].source for i in rows] for rows in dealt_to(rank).batch(step)],
        class_weights=_class_weights(labels, len(splits.names)) if config.class_weights == "balanced" else None,
        facts={
            "tokenizer_sha256": tokenizer.sha256,
            "data_fingerprint": content_hash(
                (row.text, row.label) for part in (splits.train, splits.validation) for row in part
            ),
            "global_batch_size": config.batch_size,
        },
    )


def _encode(tokenizer: Any, examples: list[Example], model: SequenceClassifier, max_length: int) -> EncodedTexts:
    texts, config = [example.text for example in examples], model.config
    return encode_texts(tokenizer, texts, config.causal, max_length, config.is_encoder_decoder)


def _accumulation(config: FinetuneConfig, lengths: np.ndarray, ranks: int, device: torch.device) -> int:
    """Micro-batches per step and rank, so that one forward pass stays within its tokens."""
    if config.micro_batch_size:
        return max(1, -(-config.batch_size // (config.micro_batch_size * ranks)))
    tokens = config.batch_size / ranks * float(np.quantile(lengths, 0.9))
    return max(1, min(config.batch_size // ranks, round(tokens / MICRO_BATCH_TOKENS[device.type])))


def _class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """N / (classes * count): every class has the same total weight (King and Zeng 2001)."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


@torch.no_grad()
def _predict(
    model: nn.Module,
    texts: EncodedTexts,
    answers: np.ndarray,
    pad: int,
    max_length: int,
    batch_size: int,
    accelerator: Accelerator,
) -> tuple[float, np.ndarray]:
    """Mean loss and predicted labels, in order; batches are shared out over the ranks.

    Ranks make equally many forward passes, since ZeRO-3 gathers weights in each; a repeated batch counts once.
    """
    batches = ordered_batches(texts.lengths, batch_size)
    found: list[tuple[np.ndarray, np.ndarray, float]] = []
    model.eval()
    for start in range(0, len(batches), accelerator.num_processes):
        mine = start + accelerator.process_index
        rows = batches[min(mine, len(batches) - 1)]
        batch = to_device(collate([texts.tokens[i] for i in rows], answers[rows], pad, max_length), accelerator.device)
        labels = batch.pop("labels")
        with accelerator.autocast():
            logits = model(**batch)
        if mine < len(batches):
            found.append((rows, logits.argmax(-1).cpu().numpy(), cross_entropy_sum(logits, labels).item()))
    model.train()
    if accelerator.num_processes > 1:
        found = gather_object(found)
    predictions = np.empty(len(answers), dtype=np.int64)
    for rows, guesses, _ in found:
        predictions[rows] = guesses
    return sum(loss for _, _, loss in found) / len(answers), predictions


def _score(
    config: FinetuneConfig, splits: Splits, run: RunDirectory, tracker: Tracker, console: Console
) -> dict[str, float]:
    """Scores of run.model, as it lies on disk, on the test split (validation when there is none), and the baselines."""
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
    wrong = [
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
