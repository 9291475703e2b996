"""How much memory a training process needs, part by part, predicted before it starts. All sizes in bytes.

Weights, gradients and optimizer state follow Rajbhandari et al. 2020 ("ZeRO", section 3), plus the buffers of DeepSpeed
0.19 and DDP; activations.py adds what autograd keeps. Not all parts exist at once (activations are freed before the
optimizer needs its workspace), so the peak is the largest of a few moments of a step.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch

from mini_llm.engine.kernels.linear import LARGE
from mini_llm.engine.loss import chunk_rows
from mini_llm.engine.muon import GATHERED, STACKED
from mini_llm.model import ModelConfig

from .activations import activation_bytes, largest_block_bytes, loss_bytes
from .parameters import Parameters, count_parameters
from .setup import MemorySetup

# DeepSpeed's defaults, in elements: the bucket in which gradients are reduced, and the weights that stage 3 keeps
# gathered (stage3_max_live_parameters).
REDUCE_BUCKET, LIVE_WEIGHTS = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes of one process by part, and the bytes allocated at the moments of a step when they may peak."""

    parts: dict[str, float]
    moments: dict[str, float]
    on_cpu: bool

    @property
    def tensors(self) -> float:
        """The most that is allocated at one moment of a step, background saving aside."""
        return max(number for moment, number in self.moments.items() if moment != "saving")

    @property
    def resident(self) -> float:
        """Memory that the machine sees in use while training.

        On a CPU it exceeds what is allocated: glibc's heap, which we keep from returning memory because that is faster
        (mini_llm/engine/distributed/processes.py), rarely reuses the memory of one part for another. Measured by
        benchmarks/memory.py: the sum of all parts, and the gradients, which alternate with activations, once more.
        """
        if not self.on_cpu:
            return self.tensors
        return sum(self.parts.values()) + self.parts["gradients"]

    @property
    def peak(self) -> float:
        return max(self.resident, *self.moments.values())

    @property
    def peak_moment(self) -> str:
        return max(self.moments, key=self.moments.__getitem__)


def predict_memory(
    config: ModelConfig, setup: MemorySetup, process: float = 0.0, parameters: Parameters | None = None
) -> Memory:
    """Memory of one process that trains `config`; `process`: bytes of Python and its libraries."""
    parameters = parameters or count_parameters(config)
    total = parameters.total
    shard = total / (setup.ranks if setup.stage else 1)
    adam = total - (parameters.hidden if setup.muon else 0)
    # AdamW has two moments, Muon one.
    optimizer = (8 * adam + 4 * (total - adam)) * shard / total

    # The loss reads the vocabulary head in chunks; it leaves the gradients of the hidden states and of the head.
    chunk = min(setup.rows * setup.labels, setup.logit_rows or chunk_rows(config, torch.device(setup.device)))
    head_gradients = 4 * config.hidden_size * (setup.rows * setup.labels + config.vocab_size)
    # Copies that autocast keeps. The kernels do not keep those of large matrices.
    matrices = parameters.matrices.items()
    cast = sum(count for (rows, columns), count in matrices if not setup.kernels or rows * columns < LARGE)
    casts = 2 * (cast + config.vocab_size * config.hidden_size) if setup.autocast else 0

    kept, made, update = _gradient_bytes(setup, parameters, shard)
    # autograd makes a second gradient of the largest table before it adds it to the first.
    doubled = config.tie_word_embeddings or setup.accumulation > 1
    parts = {
        "process": process,
        "weights": setup.weight * (total if setup.stage < 3 else shard + min(total, LIVE_WEIGHTS)),
        "fp32 master weights": _master_bytes(setup, shard),
        "gradients": kept + made + (setup.weight * parameters.largest if doubled else 0),
        "optimizer": optimizer,
        "communication": _communication_bytes(setup, total),
        "activations": activation_bytes(config, setup),
        "logits and loss": loss_bytes(config, setup) * chunk + head_gradients,
        "update": update,
        "bf16 copies of weights": casts,
        "recomputed block": largest_block_bytes(config, setup) if setup.checkpoint_every else 0.0,
    }
    states = sum(parts[name] for name in ("process", "weights", "fp32 master weights", "optimizer", "communication"))
    # Gradients of earlier micro-batches.
    earlier = made if setup.accumulation > 1 and setup.stage == 0 else 0
    moments = {
        "loss": states + kept + earlier + parts["activations"] + casts + parts["logits and loss"],
        "backward": states + parts["gradients"] + parts["recomputed block"] + head_gradients,
        "update": states + kept + made + update,
    }
    if setup.device == "cpu":
        # A copy of weights and optimizer state, written in the background while training goes on.
        moments["saving"] = max(moments.values()) + 8 * total + 4 * adam
    return Memory(parts, moments, setup.device == "cpu")


def muon_bytes(pieces: Counter[tuple[int, int]], itemsize: int, most: float = math.inf) -> float:
    """Workspace of Muon beside its momentum, for at most `most` elements at a time.

    `pieces`: elements by matrix shape; matrices of one shape are stacked (mini_llm/engine/muon.py). In fp32 the update
    directions and their stack; in `itemsize` bytes the iterate, the next one, the Gram matrix and its polynomial; two
    of these are freed before the result is made in fp32.
    """
    found = 0.0
    for (rows, columns), count in pieces.items():
        stacked = min(count, most, max(1, STACKED // (rows * columns)) * rows * columns)
        gram = rows / columns
        found = max(found, stacked * max(8 + itemsize * (2 + 2 * gram), 12 + itemsize * (1 + gram)))
    return found


def _master_bytes(setup: MemorySetup, shard: float) -> float:
    """DeepSpeed's fp32 copy of the weights. Stage 3 in fp32 updates its own shard instead."""
    return 4 * shard if setup.stage in (1, 2) or (setup.stage == 3 and setup.cast) else 0.0


def _communication_bytes(setup: MemorySetup, total: int) -> float:
    """Buckets in which gradients are reduced. DeepSpeed allocates them whole, but a CPU commits only the used part."""
    if setup.stage == 0:
        return 4.0 * total if setup.ranks > 1 else 0.0
    if setup.deepspeed_bf16:
        return 0.0
    return setup.weight * (min(total, REDUCE_BUCKET) if setup.device == "cpu" else REDUCE_BUCKET)


def _gradient_bytes(setup: MemorySetup, parameters: Parameters, shard: float) -> tuple[float, float, float]:
    """(gradients kept from step to step, made by the backward pass, workspace of the update)."""
    total = parameters.total
    if setup.stage == 0:
        return 0.0, 4.0 * total, muon_bytes(parameters.pieces, setup.muon_itemsize) if setup.muon else 0.0
    update = _sharded_muon_bytes(setup, parameters) if setup.muon else 0.0
    if setup.deepspeed_bf16:
        return 4.0 * total, 2.0 * total, update
    if setup.stage == 3:
        return 4 * shard, setup.weight * parameters.largest, 4 * shard + update
    made = setup.weight * shard + (4 * shard if setup.weight == 2 else 0)
    made += 4 * total if setup.stage == 1 else setup.weight * parameters.largest
    return 0.0, made, 4 * shard + update


def _sharded_muon_bytes(setup: MemorySetup, parameters: Parameters) -> float:
    """Under ZeRO, Muon gathers one group of matrices at a time and each rank computes its share of it."""
    group = min(parameters.hidden, GATHERED)
    mine = group / setup.ranks
    return 4 * group + 12 * mine + muon_bytes(parameters.pieces, setup.muon_itemsize, mine)
