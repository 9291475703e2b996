"""A few real training steps of a planned run on random tokens, to measure its speed and memory."""

import time

import torch

from mini_llm.engine.batch import Batch
from mini_llm.engine.distributed.processes import make_accelerator
from mini_llm.engine.step import prepare, train_step
from mini_llm.model import HEADS, ModelConfig

from ..config import PretrainConfig
from ..presets import shape_of
from .setup import MemorySetup


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


def run_trial_steps(
    config: PretrainConfig, model: ModelConfig, setup: MemorySetup, steps: int, seconds: float
) -> list[float]:
    """Seconds taken by each of at most `steps` optimizer steps; starts no step after `seconds`.

    Call start_processes first.
    """
    accelerator = make_accelerator(config.runtime, setup.accumulation, setup.rows, config.optim.max_grad_norm)
    torch.manual_seed(config.seed)
    head = HEADS[shape_of(model.causal, model.is_encoder_decoder)]
    training = prepare(head(model), config, accelerator)
    taken: list[float] = []
    while len(taken) < steps and sum(taken) < seconds:
        batches = [random_batch(model, setup) for _ in range(setup.accumulation)]
        start = time.perf_counter()
        train_step(training, batches, 1.0, config.optim.max_grad_norm)
        taken.append(time.perf_counter() - start)
    return taken
