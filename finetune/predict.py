"""Label new texts with a fine-tuned classifier: `python -m finetune predict MODEL_DIR FILE|-`."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch

from mini_llm.engine.batch import ordered_batches
from mini_llm.engine.device import default_device
from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.files import read_json
from mini_llm.model import load_model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.tokenization.load import load_tokenizer

from .encode import collate, encode_texts, padding_id
from .predict_input import STDIN, InputFormat, iter_chunks, iter_texts

OutputFormat = Literal["jsonl", "csv"]
# Batches sorted by length together. More batches need less padding, but more memory.
BATCHES_PER_CHUNK = 16
DIGITS = 6  # of a printed probability


class Classifier:
    """A classifier loaded from a directory.

    Truncates texts to `max_length` tokens: the limit of the model, or of tokenizer_config.json if that is lower.
    Raises CheckpointError or ModelDirectoryError for a directory without a classifier.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = find_classifier(Path(directory))
        self.tokenizer = load_tokenizer(self.directory)
        self.model = load_model(self.directory, head="classifier")
        config = self.model.config
        if self.tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"{self.directory}: the tokenizer has {self.tokenizer.vocab_size:,} tokens, the model "
                f"only {config.vocab_size:,}: they do not match. Copy the directory again"
            )
        self.device = default_device()
        self.model.to(self.device)
        self.names = [config.id2label[index] for index in range(config.num_labels)]
        self.max_length = min(config.max_position_embeddings, recorded_length(self.directory))
        self.truncated = 0

    @torch.inference_mode()
    def probabilities(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        """Return the probability of each label for each text, float32 (texts, labels), in the order of `texts`."""
        config = self.model.config
        encoded = encode_texts(self.tokenizer, texts, config.causal, self.max_length, config.is_encoder_decoder)
        self.truncated += encoded.truncated
        result = np.empty((len(texts), len(self.names)), dtype=np.float32)
        for batch in ordered_batches(encoded.lengths, batch_size):
            rows = [encoded.tokens[index] for index in batch]
            tensors = collate(rows, None, padding_id(self.tokenizer), self.max_length)
            logits = self.model(tensors["input_ids"].to(self.device), tensors["attention_mask"].to(self.device))
            result[batch] = logits.float().softmax(-1).cpu().numpy()
        return result


def predict(
    directory: Path,
    source: str,
    column: str = "text",
    input_format: InputFormat | None = None,
    output: Path | None = None,
    output_format: OutputFormat | None = None,
    batch_size: int = 32,
    top_k: int | None = None,
) -> int:
    """Label every text of `source` and write one row per text, in order, as they arrive. Return their number.

    Writes to `output` (default: standard output), by default as CSV if its name ends in .csv, else as JSONL. Raises
    CheckpointError, ConfigError, DataError.
    """
    if output is not None and source != STDIN and output.exists() and output.samefile(source):
        raise ConfigError(f"--output {output} is the input file; choose another name")
    if output_format is None:
        output_format = "csv" if output is not None and output.suffix.lower() == ".csv" else "jsonl"
    texts = iter_texts(source, column, input_format)
    classifier = Classifier(directory)
    rows = 0
    with open_output(output) as file:
        write = row_writer(file, output_format, classifier.names, top_k)
        for chunk in iter_chunks(texts, batch_size * BATCHES_PER_CHUNK):
            for text, probabilities in zip(chunk, classifier.probabilities(chunk, batch_size), strict=True):
                write(text, probabilities)
            rows += len(chunk)
            file.flush()
    if classifier.truncated:
        print(
            f"{classifier.truncated:,} of {rows:,} texts are longer than {classifier.max_length} tokens: "
            "only their beginning was read",
            file=sys.stderr,
        )
    return rows


def row_writer(file: TextIO, output_format: OutputFormat, names: list[str], top_k: int | None) -> Any:
    """Return a function (text, probabilities) that writes one row.

    JSONL: {"text", "label", "probability", "probabilities": {name: p}} with the `top_k` best labels, best first.
    CSV: text, label, probability, then one column per label, blank except for the `top_k` most probable.
    """
    shown = len(names) if top_k is None else min(top_k, len(names))
    table = csv.writer(file, lineterminator="\n") if output_format == "csv" else None
    if table is not None:
        table.writerow(["text", "label", "probability", *(f"p({name})" for name in names)])

    def write(text: str, probabilities: np.ndarray) -> None:
        order = np.argsort(-probabilities, kind="stable")[:shown].tolist()
        best = {index: round(float(probabilities[index]), DIGITS) for index in order}
        label, probability = names[order[0]], best[order[0]]
        if table is not None:
            table.writerow([text, label, probability, *(best.get(index, "") for index in range(len(names)))])
            return
        row = {"text": text, "label": label, "probability": probability}
        row["probabilities"] = {names[index]: value for index, value in best.items()}
        file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return write


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Open a UTF-8 text file for writing, or standard output. Raises DataError if it cannot be written."""
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
        yield sys.stdout
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8", errors="replace", newline="")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; choose another --output") from None
    with file:
        yield file


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
    return directory


def recorded_length(directory: Path) -> int:
    """Return `model_max_length` of tokenizer_config.json, the maximum length in training, or sys.maxsize without it."""
    config = read_json(directory / "tokenizer_config.json")
    length = config.get("model_max_length") if isinstance(config, dict) else None
    return int(length) if isinstance(length, (int, float)) and length >= 1 else sys.maxsize
