"""Run fine-tuning: load labelled texts, put a new head on a pretrained model, train, score against baselines."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from rich.console import Console
from torch import Tensor, nn

from mini_llm.engine.batch import Batch, LengthBatches, ordered_batches, to_device
from mini_llm.engine.config import build_config
from mini_llm.engine.device import default_device
from mini_llm.engine.distributed.processes import make_accelerator, resolved_runtime, start_processes
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
# Tokens per rank in one training forward pass, if micro_batch_size is not set.
MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 65_536}
CONFUSION_LIMIT = 50  # labels; larger confusion matrices are not saved


def finetune(config: FinetuneConfig) -> dict[str, float]:
    """Run or resume `config` and return the final scores. Raises the errors of mini_llm.engine.errors."""
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
        tree = run.as_requested(tree, HARMLESS)
        config = build_config(FinetuneConfig, tree, str(run.path))
        run.record(tree, "finetune")
        # The main process downloads Hub datasets once for all.
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
    """Recompute `step` of the run at `path`. Raises ConfigError."""
    run = RunDirectory(path, main_process=False)
    config = build_config(FinetuneConfig, run.requested(), str(path))
    processes = start_processes(config.runtime)
    source = find_pretrained(Path(config.model))
    with processes.main_process_first():
        splits = load_examples(config.data)
    again = Replay(step, load_tokenizer(source).decode, dump)
    with Tracker(path, config.tracking, "finetune", {}, main_process=False) as tracker:
        _train(config, source, splits, processes, run, tracker, Console(quiet=True), again)


def find_pretrained(path: Path) -> Path:
    """Return the model directory at `path` or in the run there. Raises CheckpointError or ModelDirectoryError."""
    directory = find_model(path)
    if directory is None:
        raise CheckpointError(
            f"{path}: no pretrained model there (no config.json, no model/config.json). "
            "Train one with `make pretrain`, or name a directory: --init DIR"
        )
    family = read_config(directory)["model_type"]
    able = [name for name, layout in LAYOUTS.items() if "classifier" in layout.architectures.values()]
    if family not in able:
        raise CheckpointError(
            f"{directory}: a {family} model, but transformers has no classifier of that family. "
            f"Use one of {', '.join(able)}"
        )
    return directory


def load_classifier(config: FinetuneConfig, source: Path, names: list[str], tokenizer: Any) -> SequenceClassifier:
    """Load the pretrained trunk with a new classification head, or build the same architecture untrained.

    Sets the config's padding id to ours, because transformers uses it to find the end of a text. Raises CheckpointError
    if the tokenizer has more tokens than the model.
    """
    changes = {"id2label": dict(enumerate(names)), "dropout": config.dropout, "pad_token_id": padding_id(tokenizer)}
    model = load_model(source, head="classifier", **changes)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model only "
            f"{model.config.vocab_size:,}: they do not match. Copy the directory again"
        )
    return SequenceClassifier(model.config) if config.weights == "random" else model


def describe_start(source: Path, model: SequenceClassifier) -> list[str]:
    """Return notes on newly initialized weights and on tensors of `source` that the classifier does not use."""
    notes = [f"{source}: newly initialized: {', '.join(model.newly_initialized) or 'nothing'}"]
    if model.left_behind:
        notes.append(f"{source}: not used: {', '.join(model.left_behind)}")
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
    beginning = " ".join(tokenizer.id_to_token(i) for i in training.tokens[0][:8])
    console.print(
        f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens; the first text begins with {beginning}",
        markup=False,
    )
    if training.truncated:
        share = training.truncated / len(splits.train)
        console.print(
            f"{share:.0%} of the training texts are longer than {max_length} tokens: only their beginning is read"
        )

    labels = np.array([example.label for example in splits.train])
    ranks = processes.num_processes
    device = default_device(config.runtime.device)
    accumulation = _accumulation(config, training.lengths, ranks, device)

    def batches_of(rank: int) -> LengthBatches:
        return LengthBatches(training.lengths, config.batch_size, config.seed, ranks, rank, accumulation)

    batches = batches_of(processes.process_index)
    micro_batch_size = max(1, config.batch_size // (accumulation * ranks))
    accelerator = make_accelerator(config.runtime, accumulation, micro_batch_size, config.optim.max_grad_norm)
    pad = padding_id(tokenizer)

    def batch(step: int) -> list[Batch]:
        return [
            collate([training.tokens[i] for i in rows], labels[rows], pad, max_length) for rows in batches.batch(step)
        ]

    held_out_labels = np.array([example.label for example in splits.validation])

    def evaluate(model: nn.Module) -> dict[str, float]:
        # The evaluate package takes seconds to import, so do not import it before the first step.
        from .metrics import compute_scores

        loss, predictions = _predict(
            model, held_out, held_out_labels, pad, max_length, config.evaluation_batch_size, accelerator
        )
        scores = compute_scores(held_out_labels, predictions, splits.names)
        return {
            "val/loss": loss,
            "val/accuracy": scores.accuracy,
            "val/macro_f1": scores.macro_f1,
            "val/mcc": scores.mcc,
        }

    steps = max(1, round(config.epochs * batches.steps_per_epoch))
    optim = config.optim.for_width(model.config.hidden_size)
    max_steps = min(config.max_steps or steps, steps)
    chosen: dict[str, Any] = {"run": config.run_name, "micro_batch_size": micro_batch_size, "max_steps": max_steps}
    chosen |= {"data": config.data.model_copy(update={"max_length": max_length}), "optim": optim.resolved()}
    chosen["runtime"] = resolved_runtime(config.runtime, compiled=config.runtime.compile is True)
    resolved = config.model_copy(update=chosen).model_dump(mode="json")
    run.resolve(resolved)
    tracker.config(resolved)
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
        config.model_copy(update={"max_steps": max_steps, "optim": optim}),
        accelerator,
        run,
        tracker,
        lambda directory: save_tokenizer(tokenizer, directory, kind, max_length, pad),
        metric=f"val/{config.metric}",
        larger_is_better=config.metric != "loss",
        evaluation_in_steps=held_out.lengths.sum() / (config.batch_size * mean_length),
        flops_per_token=lambda head_share: flops_per_token(model.config, round(mean_length), 0.0),
        documents=lambda step, rank, _: [splits.train[i].source for rows in batches_of(rank).batch(step) for i in rows],
        class_weights=_class_weights(labels, len(splits.names)) if config.class_weights == "balanced" else None,
        metadata={
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
    """Return the micro-batches per step and rank that keep a forward pass within MICRO_BATCH_TOKENS."""
    if config.micro_batch_size:
        return max(1, -(-config.batch_size // (config.micro_batch_size * ranks)))
    tokens = config.batch_size / ranks * float(np.quantile(lengths, 0.9))
    return max(1, min(config.batch_size // ranks, round(tokens / MICRO_BATCH_TOKENS[device.type])))


def _class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return N / (classes * count), so that every class has the same total weight (King and Zeng 2001)."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


@torch.no_grad()
def _predict(
    model: nn.Module,
    texts: EncodedTexts,
    labels: np.ndarray,
    pad: int,
    max_length: int,
    batch_size: int,
    accelerator: Accelerator,
) -> tuple[float, np.ndarray]:
    """Return the mean loss and the predicted labels, in order. Batches are distributed over the ranks.

    All ranks run the same number of forward passes, because ZeRO-3 gathers weights in each. A repeated batch counts
    once.
    """
    batches = ordered_batches(texts.lengths, batch_size)
    found: list[tuple[np.ndarray, np.ndarray, float]] = []
    model.eval()
    for start in range(0, len(batches), accelerator.num_processes):
        mine = start + accelerator.process_index
        rows = batches[min(mine, len(batches) - 1)]
        batch = to_device(collate([texts.tokens[i] for i in rows], labels[rows], pad, max_length), accelerator.device)
        targets = batch.pop("labels")
        with accelerator.autocast():
            logits = model(**batch)
        if mine < len(batches):
            found.append((rows, logits.argmax(-1).cpu().numpy(), cross_entropy_sum(logits, targets).item()))
    model.train()
    if accelerator.num_processes > 1:
        found = gather_object(found)
    predictions = np.empty(len(labels), dtype=np.int64)
    for rows, predicted, _ in found:
        predictions[rows] = predicted
    return sum(loss for _, _, loss in found) / len(labels), predictions


def _score(
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
