"""A few real training steps of a planned run on random tokens, to measure its speed and memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from mini_llm.engine.batch import Batch
from mini_llm.engine.distributed.processes import make_accelerator
from mini_llm.engine.kernels.install import use_kernels
from mini_llm.engine.step import prepare, train_step
from mini_llm.model import HEADS, ModelConfig

from ..config import PretrainConfig
from ..presets import shape_of
from .setup import MemorySetup, Way


def random_batch(model: ModelConfig, setup: MemorySetup) -> Batch:
    """One micro-batch with the shapes that the training objective of `model` produces."""

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(model.vocab_size, shape)

    rows, batch = setup.rows, {"input_ids": ids(setup.rows, setup.length)}
    if model.is_encoder_decoder:
        return batch | {"decoder_input_ids": ids(rows, setup.target_length), "labels": ids(rows, setup.target_length)}
    if not model.causal:
        if setup.labels == setup.length and not model.next_sentence:
            return batch | {"labels": ids(rows, setup.length), "causal": True}
        batch["positions"] = torch.arange(setup.labels).expand(rows, -1).contiguous()
        if model.next_sentence:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
            batch["next_sentence_label"] = torch.randint(2, (rows,))
    return batch | {"labels": ids(rows, setup.labels)}


@contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch and our kernels compute with this many threads; None: with as many as before."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


class Trial:
    """A model of a planned run that trains on random tokens. It leaves PyTorch's random state as it was.

    Call start_processes first.
    """

    def __init__(self, config: PretrainConfig, model: ModelConfig, setup: MemorySetup) -> None:
        self.model, self.setup, self.max_norm = model, setup, config.optim.max_grad_norm
        self.attention = config.runtime.attention
        accelerator = make_accelerator(config.runtime, setup.accumulation, setup.rows, self.max_norm)
        with _random_state_kept():
            torch.manual_seed(config.seed)
            head = HEADS[shape_of(model.causal, model.is_encoder_decoder)]
            self.training = prepare(head(model), config, accelerator)

    def step(self) -> float:
        """Seconds of a whole optimizer step."""
        return self._seconds(self.setup)

    def seconds_per_row(self, way: Way, rows: int) -> float:
        """Seconds of an optimizer step on about `rows` rows, divided by their number."""
        self.training.logit_rows = way.logit_rows
        if way.attention != self.attention:
            use_kernels(self.training.model, way.attention)
            self.attention = way.attention
        accumulation = max(1, rows // way.micro_batch_size)
        setup = replace(self.setup, rows=way.micro_batch_size, accumulation=accumulation)
        with using_threads(way.threads):
            return self._seconds(setup) / (way.micro_batch_size * accumulation)

    def _seconds(self, setup: MemorySetup) -> float:
        accelerator = self.training.accelerator
        # All Accelerators of a process share the number of micro-batches per step.
        accelerator.gradient_accumulation_steps, accelerator.step = setup.accumulation, 0
        with _random_state_kept():
            batches = [random_batch(self.model, setup) for _ in range(setup.accumulation)]
            start = time.perf_counter()
            train_step(self.training, batches, 1.0, self.max_norm)
            return time.perf_counter() - start


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


def run_trial_steps(
    config: PretrainConfig, model: ModelConfig, setup: MemorySetup, steps: int, seconds: float
) -> list[float]:
    """Seconds taken by each of at most `steps` optimizer steps; starts no step after `seconds`.

    Call start_processes first.
    """
    trial = Trial(config, model, setup)
    taken: list[float] = []
    while len(taken) < steps and sum(taken) < seconds:
        taken.append(trial.step())
    return taken
