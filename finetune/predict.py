"""Label new texts with a fine-tuned classifier: `python -m finetune predict MODEL_DIR FILE|-`."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_llm.corpus.report import ReadReport
from mini_llm.engine.batch import ordered_batches
from mini_llm.engine.device import default_device
from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.files import read_json
from mini_llm.engine.run.heap import return_freed_memory
from mini_llm.engine.run.partial import PartialOutput, model_hash
from mini_llm.model import load_model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.tokenization.load import load_tokenizer

from .encode import EncodedTexts, collate, encode_texts, padding_id
from .predicting.output import LabelState, OutputFormat, RowWriter, Writable
from .predicting.progress import BatchTimes, RowProgress
from .predicting.rows import InputFormat, InputRow, OnNull, characters, is_stream, iter_chunks, iter_input
from .recipe.ensemble import read_ensemble
from .scores.calibration import Calibration, read_calibration
from .tasks.registry import SINGLE_LABEL, model_task

# Batches sorted by length together. More batches need less padding, but more memory.
BATCHES_PER_CHUNK = 16


class Classifier:
    """A classifier loaded from a directory.

    Truncates texts to `max_length` tokens: the limit of the model, or of tokenizer_config.json if that is lower.
    Raises CheckpointError or ModelDirectoryError for a directory without a classifier.
    """

    def __init__(self, directory: Path | str, alone: bool = False) -> None:
        self.directory = find_classifier(Path(directory))
        self.model = load_model(self.directory, head="classifier")
        config = self.model.config
        self.tokenizer = load_tokenizer(self.directory, config.vocab_size)
        self.device = default_device()
        self.model.to(self.device)
        self.names = [config.id2label[index] for index in range(config.num_labels)]
        self.max_length = min(config.max_position_embeddings, recorded_length(self.directory))
        self.ensemble = None if alone else read_ensemble(self.directory)
        own = read_calibration(self.directory) or Calibration()
        self.calibration = self.ensemble.calibration if self.ensemble else own
        self.truncated = 0
        self.batch_times = BatchTimes()

    def encode(self, texts: list[str]) -> EncodedTexts:
        """Return the token ids of `texts` as the model reads them."""
        config = self.model.config
        return encode_texts(self.tokenizer, texts, config.causal, self.max_length, config.is_encoder_decoder)

    @torch.inference_mode()
    def probabilities(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        """Return the probability of each label for each text, float32 (texts, labels), in the order of `texts`.

        They are the softmax of the model's logits, without calibration and without the linear models stored beside it.
        """
        encoded = self.encode(texts)
        self.truncated += encoded.truncated
        result = np.empty((len(texts), len(self.names)), dtype=np.float32)
        for batch in ordered_batches(encoded.lengths, batch_size):
            started = time.monotonic()
            rows = [encoded.tokens[index] for index in batch]
            tensors = collate(rows, None, padding_id(self.tokenizer), self.max_length)
            logits = self.model(tensors["input_ids"].to(self.device), tensors["attention_mask"].to(self.device))
            result[batch] = logits.float().softmax(-1).cpu().numpy()
            self.batch_times.append(time.monotonic() - started)
        return result

    def calibrated(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        """Return the probabilities of predictions, float64 (texts, labels): those of the model, pooled with the linear
        models stored beside it (recipe/ensemble.py), after the stored temperature scaling (scores/calibration.py).
        """
        found = self.probabilities(texts, batch_size)
        if self.ensemble:
            found = self.ensemble.pool(found, texts)
        return found.astype(np.float64) if self.calibration.temperature == 1 else self.calibration.apply(found)

    def threshold(self, precision: float) -> float:
        """Return the calibrated probability from which answers had `precision` on validation. Raises ConfigError."""
        thresholds = self.calibration.thresholds
        for wanted, threshold in thresholds.items():
            if abs(wanted - precision) < 1e-9:
                return threshold.probability
        known = ", ".join(f"{wanted:g}" for wanted in sorted(thresholds))
        raise ConfigError(
            f"{self.directory}: no threshold is stored for a precision of {precision:g}, "
            + (
                f"only for: {known}. Choose one of them, or set"
                if known
                else "nor for another one: too few validation texts showed that the model reaches it. Set"
            )
            + " the threshold itself: --min-probability P"
        )


def predict(
    directory: Path,
    source: str,
    column: str = "text",
    input_format: InputFormat | None = None,
    output: Path | None = None,
    output_format: OutputFormat | None = None,
    batch_size: int = 32,
    top_k: int | None = None,
    min_probability: float | None = None,
    precision: float | None = None,
    on_null: OnNull | None = None,
    encoding: str | None = None,
    alone: bool = False,
) -> int:
    """Label every row of `source` and write one row each, in order, as they arrive. Return the number of rows written.

    Writes to `output` (default: standard output), by default as CSV if its name ends in .csv, else as JSONL. An output
    file whose input is a file is written as mini_llm/engine/run/partial.py says: the same call continues after a kill.
    A row whose best calibrated probability is below `min_probability`, or below the threshold stored for `precision`,
    gets no label. `on_null`: rows without text; see iter_input. `alone`: without the
    linear models stored beside the model. Raises CheckpointError, ConfigError, DataError.
    """
    if min_probability is not None and precision is not None:
        raise ConfigError("--min-probability and --precision both set the threshold; give one of them")
    if output_format is None:
        output_format = "csv" if output is not None and output.suffix.lower() == ".csv" else "jsonl"
    report = ReadReport()
    rows = iter_input(source, column, input_format, on_null, report, encoding)
    if output is not None and not is_stream(source) and output.exists() and output.samefile(os.path.expanduser(source)):
        raise ConfigError(f"--output {output} is the input file; choose another name")
    classifier = Classifier(directory, alone)
    if classifier.tokenizer.remark:
        print(classifier.tokenizer.remark, file=sys.stderr)
    threshold = min_probability if precision is None else classifier.threshold(precision)
    options = [column, output_format, top_k, threshold, on_null, encoding, alone]
    with open_output(output, is_stream(source), classifier.directory, source, options) as (file, partial):
        writer = RowWriter(file, output_format, classifier.names, top_k, threshold)
        if partial is not None and partial.state.written:
            print(f"{partial.partial}: continues after row {partial.state.row:,}", file=sys.stderr)
            writer.layout = partial.state.layout
            writer.abstained, classifier.truncated = partial.state.abstained, partial.state.truncated
        if partial is not None:
            rows = partial.skip_done(rows, source)
        before = partial.state.written if partial else 0
        written = label_rows(rows, classifier, writer, partial, batch_size, source, report)
        print_summary(written, before, classifier, writer, batch_size, report)
    return before + written.rows


def label_rows(
    rows: Iterator[InputRow],
    classifier: Classifier,
    writer: RowWriter,
    partial: PartialOutput[LabelState] | None,
    batch_size: int,
    source: str,
    report: ReadReport,
) -> RowProgress:
    """Write every row with its label. Return the number of rows and their time."""
    streamed = is_stream(source)
    total = None if streamed else os.path.getsize(os.path.expanduser(source))
    both_terminals = writer.file is sys.stdout and sys.stdout.isatty()
    chunks = iter_chunks(rows, batch_size * BATCHES_PER_CHUNK, not streamed, characters)
    with RowProgress(total, not both_terminals) as progress:
        for chunk in chunks:
            texts = [row.text for row in chunk if row.text is not None]
            found = iter(classifier.calibrated(texts, batch_size) if texts else ())
            for row in chunk:
                writer.write(row, None if row.text is None else next(found))
            if partial is None:
                writer.file.flush()
            else:
                partial.commit(chunk, layout=writer.layout, truncated=classifier.truncated, abstained=writer.abstained)
            progress.update(progress.rows + len(chunk), report.raw_bytes)
            return_freed_memory()
    writer.begin([])  # a CSV file without rows has a header too
    return progress


def print_summary(
    progress: RowProgress, before: int, classifier: Classifier, writer: RowWriter, batch_size: int, report: ReadReport
) -> None:
    """Print the speed and what a user should know about the rows to standard error."""
    rows = before + progress.rows
    rate = progress.rows / max(progress.seconds, 1e-9)
    lines = [
        f"{progress.rows:,} texts in {progress.seconds:.1f} s, {rate:,.0f} texts/s; "
        f"batches of up to {batch_size}: {classifier.batch_times}"
    ]
    if classifier.truncated:
        lines.append(
            f"{classifier.truncated:,} of {rows:,} texts are longer than {classifier.max_length} tokens: "
            "only their beginning was read"
        )
    if writer.threshold is not None:
        lines.append(
            f"{writer.abstained:,} of {rows:,} rows have no label: their probability is below {writer.threshold:.4g}"
        )
    if report.replaced_bytes:
        lines.append(
            f"{report.replaced_bytes:,} bytes that are not valid in the encoding of the input were replaced by U+FFFD. "
            f"If that is wrong: {report.advice()}"
        )
    print("\n".join(lines), file=sys.stderr)


@contextmanager
def open_output(
    path: Path | None, streamed: bool, model: Path, source: str, options: list[Any]
) -> Iterator[tuple[Writable, PartialOutput[LabelState] | None]]:
    """Open the output for writing UTF-8: a PartialOutput if it can be continued, else a file or standard output.

    Raises ConfigError, DataError.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
        yield sys.stdout, None
        return
    if not streamed and (path.is_file() or not path.exists()):
        key = {"model": model_hash(model), "input": str(Path(source).resolve()), "options": str(options)}
        # A symbolic link stays one.
        with PartialOutput(path.resolve() if path.is_symlink() else path, key, LabelState) as partial:
            yield partial.file, partial
        return
    # A stream cannot be read again, and an output that is a pipe or device cannot be cut.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8", errors="replace", newline="")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; choose another --output") from None
    with file:
        yield file, None


def find_classifier(path: Path) -> Path:
    """Return `path` or, for a run directory, its model/ folder if it holds a classifier.

    Raises CheckpointError, ModelDirectoryError.
    """
    directory = find_model(path)
    advice = "Train one with `python -m finetune` and name its run or model directory"
    if directory is None:
        problem = "no config.json here or in model/" if path.is_dir() else "no such directory"
        raise CheckpointError(f"{path}: {problem}, so this is not a classifier. {advice}")
    names = read_config(directory)["architectures"]
    if not names or not str(names[0]).endswith("ForSequenceClassification"):
        kind = names[0] if names else "unknown"
        raise CheckpointError(f"{directory}: not a classifier but a {kind}. {advice}: python -m finetune model={path}")
    if (task := model_task(directory)) != SINGLE_LABEL:
        raise CheckpointError(
            f"{directory}: a model of task={task}, not a classifier with single labels. Use `python -m finetune "
            "predict` or `score`, or TaskModel of finetune/tasks/model.py"
        )
    return directory


def recorded_length(directory: Path) -> int:
    """Return `model_max_length` of tokenizer_config.json, the maximum length in training, or sys.maxsize without it."""
    config = read_json(directory / "tokenizer_config.json")
    length = config.get("model_max_length") if isinstance(config, dict) else None
    return int(length) if isinstance(length, (int, float)) and length >= 1 else sys.maxsize
