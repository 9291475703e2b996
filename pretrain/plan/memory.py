"""How much memory a training process needs, part by part, before it is started. All sizes in bytes.

Weights, gradients and optimizer state follow Rajbhandari et al. 2020 ("ZeRO", section 3), with what DeepSpeed 0.19 and
DDP hold beside them; activations are in activations.py. The peak is the largest of a few moments of a step, since not
all parts are there at once: activations are gone when the optimizer needs its own room.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mini_llm.engine.device import DTYPES
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.kernels.attention import longest_in_kernel
from mini_llm.engine.kernels.linear import LARGE
from mini_llm.engine.loss import piece_rows
from mini_llm.engine.muon import GATHERED, STACKED
from mini_llm.model import ModelConfig
from mini_llm.model.attention import SHORT

from .activations import Widths, block_bytes, edge_bytes, loss_bytes
from .parameters import Parameters, count_parameters

STAGES = (0, 1, 2, 3)
# DeepSpeed's defaults, in elements: gradients are reduced, and weights kept gathered by stage 3, up to these.
REDUCE_BUCKET, LIVE_WEIGHTS = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class Setup:
    """What memory depends on beside the model.

    rows: of a micro-batch. length, target_length: tokens of a row for the encoder or decoder, and for the decoder of an
    encoder-decoder. labels: positions of a row that reach the vocabulary head. padded: rows have masks of their own.
    kernels: layers take those of a CPU (mini_llm/engine/kernels/install.py).
    """

    rows: int
    length: int
    labels: int
    target_length: int = 0
    accumulation: int = 1
    ranks: int = 1
    stage: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpoint_every: int = 0
    cast: bool = False
    muon: bool = False
    padded: bool = False
    device: str = "cpu"
    kernels: bool = False
    # Bytes of an element in Muon's iteration (mini_llm/engine/optim.py: orthogonalize_dtype).
    iterate: int = 4

    @property
    def has_own_bf16(self) -> bool:
        """DeepSpeed has an optimizer of its own for bf16 in stage 1, with whole gradients in fp32."""
        return self.stage == 1 and self.cast and self.precision == "bf16"

    @property
    def in_place(self) -> bool:
        """Gradients are added where they are made (mini_llm/engine/kernels/weight_gradients.py)."""
        return self.kernels and self.stage == 0 and self.ranks == 1

    @property
    def widths(self) -> Widths:
        return Widths(
            stream=2 if self.cast and self.precision != "fp32" else 4,
            product=4 if self.precision == "fp32" else 2,
            short=SHORT if self.device == "cpu" and self.precision == "bf16" else 0,
            fused=longest_in_kernel(DTYPES[self.precision]) if self.kernels else 0,
            kernels=self.kernels,
            on_gpu=self.device != "cpu",
        )


def muon_bytes(pieces: Counter[tuple[int, int]], width: int, most: float = math.inf) -> float:
    """Room that Muon takes beside its momentum, for `most` elements of pieces of these shapes at a time, or for a stack
    of mini_llm/engine/optim.py.

    Directions and their stack in fp32; of `width` bytes the iterate, the next one, the Gram matrix and its polynomial.
    Or, when the iterate becomes the result in fp32, that in the place of two of these.
    """
    found = 0.0
    for (rows, columns), count in pieces.items():
        stacked = min(count, most, max(1, STACKED // (rows * columns)) * rows * columns)
        gram = rows / columns
        found = max(found, stacked * max(8 + width * (2 + 2 * gram), 12 + width * (1 + gram)))
    return found


@dataclass(frozen=True)
class Memory:
    """Bytes of one process by part, and what tensors and process hold at the moments when that may be most."""

    parts: dict[str, float]
    moments: dict[str, float]
    on_cpu: bool

    @property
    def tensors(self) -> float:
        """The most that is alive at one moment of a step."""
        return max(number for moment, number in self.moments.items() if moment != "saving")

    @property
    def resident(self) -> float:
        """What steps take from the machine.

        On a CPU more than is alive: glibc's heap, which mini_llm/engine/distributed/processes.py keeps from returning memory (for speed),
        hardly gives the room of one part to another. Found by benchmarks/memory.py: all parts, and gradients, which
        come and go among activations, once more.
        """
        if not self.on_cpu:
            return self.tensors
        return sum(self.parts.values()) + self.parts["gradients"]

    @property
    def peak(self) -> float:
        return max(self.resident, *self.moments.values())

    @property
    def moment(self) -> str:
        """When most is alive."""
        return max(self.moments, key=self.moments.__getitem__)


def memory(config: ModelConfig, setup: Setup, process: float = 0.0, parameters: Parameters | None = None) -> Memory:
    """What one process of `setup` holds when it trains `config`; `process`: Python and its libraries."""
    parameters = parameters or count_parameters(config)
    total, shard = parameters.total, parameters.total / (setup.ranks if setup.stage else 1)
    width = 2 if setup.cast else 4
    adam = parameters.total - (parameters.hidden if setup.muon else 0)
    # The logits of a piece, and the gradients of what came before the head and of its matrix.
    piece = min(setup.rows * setup.labels, piece_rows(config, torch.device(setup.device)))
    made_by_head = 4 * config.hidden_size * setup.rows * setup.labels
    if not setup.in_place:
        made_by_head += 4 * config.hidden_size * config.vocab_size
    losses = loss_bytes(config, setup.widths) * piece + made_by_head
    parts = {
        "process": process,
        "weights": width * total if setup.stage < 3 else width * (shard + min(total, LIVE_WEIGHTS)),
        "fp32 master weights": _master(setup, shard),
        "gradients": 0.0,
        "optimizer": (8 * adam + 4 * (total - adam)) * shard / total,
        "communication": _communication(setup, width, total),
        "activations": activations(config, setup),
        "logits and loss": losses,
        "update": 0.0,
    }
    kept, made, update = _gradients(setup, parameters, width, shard)
    # A second gradient of the largest table is made before it is added to the first.
    second = not setup.in_place and (config.tie_word_embeddings or setup.accumulation > 1)
    twice = width * parameters.table if second else 0
    # What autocast casts and keeps.
    matrices = parameters.matrices.items()
    kept_casts = sum(n for (rows, columns), n in matrices if not setup.kernels or rows * columns < LARGE)
    casts = 2 * (kept_casts + config.vocab_size * config.hidden_size) if setup.widths.autocast else 0
    parts |= {
        "bf16 copies of weights": casts,
        "recomputed block": _largest_block(config, setup) if setup.checkpoint_every else 0.0,
        "gradients": kept + made + twice,
        "update": update,
    }
    states = sum(parts[name] for name in ("process", "weights", "fp32 master weights", "optimizer", "communication"))
    # Of earlier micro-batches all; of this one by then the head's, where it is in place.
    earlier = 4 * parameters.table if setup.in_place else 0
    if setup.accumulation > 1 and setup.stage == 0:
        earlier = made
    moments = {
        "loss": states + kept + earlier + parts["activations"] + casts + parts["logits and loss"],
        "backward": states + parts["gradients"] + parts["recomputed block"] + made_by_head,
        "update": states + kept + made + update,
    }
    if setup.device == "cpu":
        # All of weights and optimizer state is copied, and written while the steps go on.
        moments["saving"] = max(moments.values()) + 8 * total + 4 * adam
    return Memory(parts, moments, setup.device == "cpu")


def _master(setup: Setup, shard: float) -> float:
    """DeepSpeed's fp32 weights; stage 3 in fp32 updates its own shard."""
    return 4 * shard if setup.stage in (1, 2) or (setup.stage == 3 and setup.cast) else 0.0


def _communication(setup: Setup, width: int, total: int) -> float:
    """Buckets in which gradients are reduced. Those of DeepSpeed are allocated whole, but a CPU fills what it uses."""
    if setup.stage == 0:
        return 4.0 * total if setup.ranks > 1 else 0.0
    if setup.has_own_bf16:
        return 0.0
    return width * (min(total, REDUCE_BUCKET) if setup.device == "cpu" else REDUCE_BUCKET)


def _gradients(setup: Setup, parameters: Parameters, width: int, shard: float) -> tuple[float, float, float]:
    """(kept from step to step, made in the backward pass, made by the update)."""
    total = parameters.total
    if setup.stage == 0:
        return 0.0, 4.0 * total, muon_bytes(parameters.pieces, setup.iterate) if setup.muon else 0.0
    update = _sharded_muon_bytes(setup, parameters) if setup.muon else 0.0
    if setup.has_own_bf16:
        return 4.0 * total, 2.0 * total, update
    if setup.stage == 3:
        return 4 * shard, width * parameters.table, 4 * shard + update
    made = width * shard + (4 * shard if width == 2 else 0)
    return 0.0, made + (4 * total if setup.stage == 1 else width * parameters.table), 4 * shard + update


def _sharded_muon_bytes(setup: Setup, parameters: Parameters) -> float:
    """Muon under ZeRO gathers one group at a time, and each rank computes its share of it."""
    group = min(parameters.hidden, GATHERED)
    mine = group / setup.ranks
    return 4 * group + 12 * mine + muon_bytes(parameters.pieces, setup.iterate, mine)


def activations(config: ModelConfig, setup: Setup) -> float:
    """What autograd keeps of the trunk for the backward pass."""
    total = 0.0
    for trunk, length, across in _trunks(config, setup):
        blocks = _blocks(trunk, setup, length, across)
        total += edge_bytes(trunk, setup.widths) * setup.rows * length
        for i, block in enumerate(blocks):
            recomputed = setup.checkpoint_every and i % setup.checkpoint_every == 0
            total += setup.widths.stream * trunk.hidden_size * setup.rows * length if recomputed else block
    return total


def _blocks(trunk: ModelConfig, setup: Setup, length: int, across: int) -> list[float]:
    """Bytes of each block of one trunk."""
    found = []
    for i, kind in enumerate(trunk.layer_types):
        masks = 1.0 if setup.padded else 1 / setup.rows if kind == "sliding_attention" else 0.0
        found.append(block_bytes(trunk, setup.widths, length, across, masks, i == 0) * setup.rows * length)
    return found


def _trunks(config: ModelConfig, setup: Setup) -> list[tuple[ModelConfig, int, int]]:
    """(trunk, its tokens a row, tokens it attends to across)."""
    if not config.is_encoder_decoder:
        return [(config, setup.length, 0)]
    return [(config.encoder(), setup.length, 0), (config.decoder(), setup.target_length, setup.length)]


def _largest_block(config: ModelConfig, setup: Setup) -> float:
    return max(max(_blocks(trunk, setup, length, across)) for trunk, length, across in _trunks(config, setup))


def fit(config: ModelConfig, setup: Setup, limit: float, process: float, ranks_here: int, origin: str) -> Memory:
    """The memory of `setup`; raises ConfigError where it exceeds `limit` (of this machine, for its ranks), saying which
    part is largest and what would fit."""
    parameters = count_parameters(config)

    def needed(trial: Setup) -> float:
        return memory(config, trial, process, parameters).peak * ranks_here

    found = memory(config, setup, process, parameters)
    if needed(setup) <= limit:
        return found
    largest = max(found.parts, key=found.parts.__getitem__)
    times = f" in each of {ranks_here} processes" if ranks_here > 1 else ""
    raise ConfigError(
        f"this run does not fit: it needs about {size(found.peak)}{times} (most at: {found.moment}), "
        f"{origin} has {size(limit)}. The largest part: {largest}, {size(found.parts[largest])}, of a model of "
        f"{parameters.total:,} parameters. {_remedy(setup, needed, limit, parameters, process)}"
    )


def _remedy(
    setup: Setup, needed: Callable[[Setup], float], limit: float, parameters: Parameters, process: float
) -> str:
    """The smallest change that fits."""
    checkpointed = replace(setup, checkpoint_every=1)
    if not setup.checkpoint_every and needed(checkpointed) <= limit:
        return f"runtime.gradient_checkpointing=1 would fit: {size(needed(checkpointed))}"
    mine = setup.rows * setup.accumulation
    fewer = [rows for rows in range(setup.rows - 1, 0, -1) if mine % rows == 0]
    for trial, also in ((setup, ""), (checkpointed, " runtime.gradient_checkpointing=1")):
        for rows in fewer:
            smaller = needed(replace(trial, rows=rows, accumulation=mine // rows))
            if smaller <= limit:
                return f"micro_batch_size={rows}{also} would fit: {size(smaller)}"
    if needed(replace(checkpointed, rows=1, muon=False)) <= limit:
        return "micro_batch_size=1 runtime.gradient_checkpointing=1 optim.name=adamw would fit"
    if setup.device == "cuda":
        for ranks in (2**i for i in range(1, 11)):
            sharded = replace(checkpointed, rows=1, ranks=max(ranks, setup.ranks), stage=3, muon=False)
            if needed(sharded) <= limit:
                return f"runtime.zero_stage=3 on {sharded.ranks} ranks, micro_batch_size=1 and checkpointing would fit"
    most = max(0.0, limit - process) / 16
    return f"No setting fits: a model of at most about {most:,.0f} parameters would (fewer layers or a smaller width)"


def size(number: float) -> str:
    """Bytes for readers."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"
