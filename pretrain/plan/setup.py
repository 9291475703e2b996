"""What the memory and the speed of a training process depend on beside the model."""

import sys
from dataclasses import dataclass
from typing import Literal

from mini_llm.engine.device import DTYPES
from mini_llm.engine.kernels.attention import longest_in_kernel
from mini_llm.engine.settings import Attention
from mini_llm.model.operations import SHORT


@dataclass(frozen=True)
class Way:
    """How a training step is computed; its result is the same up to rounding.

    threads, logit_rows: None for the defaults of PyTorch and of mini_llm/engine/loss.py.
    """

    micro_batch_size: int
    threads: int | None = None
    logit_rows: int | None = None
    attention: Attention = "auto"
    compile: bool = False


@dataclass(frozen=True)
class MemorySetup:
    """Shapes, precision and sharding of a run.

    rows: rows of a micro-batch.
    length, target_length: tokens per row; an encoder-decoder has two lengths, the second for its decoder.
    labels: positions per row that reach the vocabulary head.
    stage: ZeRO stage, 0 for none. cast: DeepSpeed casts the model to `precision`, in place of autocast.
    checkpoint_every: recompute every n-th block in the backward pass; 0: none.
    padded: every row has its own attention mask.
    kernels: layers use the CPU kernels (mini_llm/engine/kernels/install.py).
    muon_itemsize: bytes of an element while Muon orthogonalizes.
    logit_rows: positions whose logits are computed at a time; None: by the rule of mini_llm/engine/loss.py.
    attention: of the CPU kernels, as runtime.attention.
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
    muon_itemsize: int = 4
    logit_rows: int | None = None
    attention: Attention = "auto"

    @property
    def stream(self) -> int:
        """Bytes of an element of the residual stream."""
        return 2 if self.cast and self.precision != "fp32" else 4

    @property
    def product(self) -> int:
        """Bytes of an element of the operands of a matrix product."""
        return 4 if self.precision == "fp32" else 2

    @property
    def autocast(self) -> bool:
        return self.stream != self.product

    @property
    def weight(self) -> int:
        """Bytes of an element of the model's weights."""
        return 2 if self.cast else 4

    @property
    def longest_explicit(self) -> int:
        """Keys up to which attention is computed with an explicit softmax, which autograd keeps."""
        return SHORT if self.device == "cpu" and self.precision == "bf16" else 0

    @property
    def longest_in_kernel(self) -> int:
        """Positions up to which self-attention is one operator, our kernel."""
        if not self.kernels or self.attention == "pytorch":
            return 0
        return sys.maxsize if self.attention == "kernel" else longest_in_kernel(DTYPES[self.precision])

    @property
    def deepspeed_bf16(self) -> bool:
        """Whether DeepSpeed uses its separate optimizer for bf16, which keeps whole gradients in fp32 (stage 1)."""
        return self.stage == 1 and self.cast and self.precision == "bf16"
