"""A trained model of a task: `TaskModel(directory).predict(rows)`."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_llm.engine.batch import ordered_batches
from mini_llm.engine.device import default_device
from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.files import read_json
from mini_llm.model import load_model
from mini_llm.tokenization.load import load_tokenizer

from ..predicting.progress import BatchTimes
from .encoder import Encoder, collate
from .registry import saved_task
from .task import Row


class TaskModel:
    """A model loaded from a run or model directory, with its task. `settings` replace those of training, by key.

    Reads `max_length` tokens: the limit of the model, or of tokenizer_config.json if that is lower. Raises
    CheckpointError or ModelDirectoryError.
    """

    def __init__(self, path: Path | str, settings: dict[str, Any] | None = None) -> None:
        directory = find_model(Path(path))
        if directory is None:
            raise CheckpointError(f"{path}: no config.json here or in model/, so this is not a model")
        self.directory = directory
        self.task = saved_task(directory, settings or {})
        self.model = load_model(directory, head=self.task.head)
        config = self.model.config
        self.tokenizer = load_tokenizer(directory, config.vocab_size)
        if self.task.head != "questions":
            self.task.names = self.task.names or [config.id2label[i] for i in range(config.num_labels)]
        recorded = read_json(directory / "tokenizer_config.json")
        length = recorded.get("model_max_length") if isinstance(recorded, dict) else None
        self.max_length = min(config.max_position_embeddings, int(length) if length else sys.maxsize)
        self.device = default_device()
        self.model.to(self.device)
        self.encoder = Encoder(self.tokenizer, config, self.max_length)
        self.batch_times = BatchTimes()

    @property
    def truncated(self) -> int:
        """Texts of which only the beginning was read."""
        return self.encoder.truncated

    @torch.inference_mode()
    def predict(self, rows: Sequence[Row], batch_size: int = 32) -> list[Any]:
        """Return the prediction for each row, in the form of the task."""
        windows = self.task.windows(rows, self.encoder)
        logits: list[np.ndarray] = [np.zeros(0)] * len(windows)
        for batch in ordered_batches([len(window.tokens) for window in windows], batch_size):
            started = time.monotonic()
            tensors = collate([windows[i] for i in batch], self.encoder.pad, self.max_length, self.task.by_token)
            tensors.pop("labels")
            found = self.model(**{name: value.to(self.device) for name, value in tensors.items()}).float().cpu().numpy()
            for place, index in enumerate(batch):
                logits[index] = self.task.trimmed(found[place], windows[index])
            self.batch_times.append(time.monotonic() - started)
        return self.task.decode(rows, windows, logits)
