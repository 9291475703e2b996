"""Settings that the training stages share. No torch: a configuration error is reported before torch is imported."""

from typing import Any, Literal

from pydantic import Field, field_validator

from mini_llm.engine.cli import parse_duration
from mini_llm.engine.config import Config
from mini_llm.engine.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Attention = Literal["auto", "kernel", "pytorch"]


def _duration(value: Any) -> str:
    """A duration as text. Raises ValueError, so that pydantic adds the key to the message."""
    try:
        parse_duration(str(value))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return str(value)


class OptimConfig(Config):
    """Optimizer and peak learning rates."""

    name: Literal["auto", "adamw", "muon"] = Field(
        "auto", description="Optimizer. muon: Muon for hidden matrices, AdamW for the rest; auto: muon, also with ZeRO."
    )
    lr: float = Field(3e-3, description="Peak learning rate of AdamW.")
    muon_lr: float = Field(0.02, description="Peak learning rate of the hidden matrices with Muon.")
    embedding_lr: float | None = Field(
        None, description="Peak learning rate of token and position embeddings (AdamW); null: optim.lr."
    )
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay rates of AdamW's two moment estimates.")
    eps: float = Field(1e-10, description="Term added to AdamW's denominator.")
    momentum: float = Field(0.95, description="Nesterov momentum of Muon.")
    weight_decay: float = Field(
        0.01, description="Decoupled weight decay of matrices and embeddings (not of norms and biases)."
    )
    max_grad_norm: float = Field(
        1.0, description="Clip the global gradient norm to this; 0: no clipping (the norm is still logged)."
    )

    def resolved(self) -> "OptimConfig":
        """These settings with `auto` and null replaced by what they stand for."""
        name = "muon" if self.name == "auto" else self.name
        return self.model_copy(update={"name": name, "embedding_lr": self.embedding_lr or self.lr})


class ScheduleConfig(Config):
    """Learning-rate schedule."""

    kind: Literal["wsd", "linear", "cosine"] = Field(
        "wsd",
        description="After warm-up: wsd stays at the peak, then falls linearly; linear falls from the peak to the end; "
        "cosine falls along half a cosine.",
    )
    warmup_steps: int = Field(10, description="Steps of linear warm-up; at most a tenth of the run.")
    decay_ratio: float = Field(0.5, description="wsd: share of the steps, at the end, over which the rate falls.")
    min_lr_ratio: float = Field(0.0, description="Learning rate at the end, as a share of the peak.")


class RuntimeConfig(Config):
    """Device, precision, compilation, memory. The launcher (python, torchrun, accelerate) sets processes and hosts."""

    device: Literal["auto", "cpu"] = Field("auto", description="auto: a CUDA GPU where there is one; cpu: never a GPU.")
    precision: Precision = Field(
        "auto",
        description="Number type of matrix products; auto: bf16 if the hardware has it (CPU: if it is faster), else "
        "fp16 (GPU) or fp32 (CPU).",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="torch.compile; auto: in pretraining where it saves more time than it takes, never in fine-tuning.",
    )
    gradient_checkpointing: int = Field(
        0, description="0: keep all activations; 1: recompute every layer in the backward pass; N: every N-th layer."
    )
    threads: int | None = Field(
        None, ge=1, description="Threads of a CPU; null: as many as cores, or one where that is measured to be faster."
    )
    logit_rows: int | None = Field(
        None, ge=1, description="Positions whose logits are computed at a time; null: by vocabulary, width and speed."
    )
    attention: Attention = Field(
        "auto",
        description="Self-attention in training on a CPU: our kernel or PyTorch's operators; auto: the faster one.",
    )
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        None, description="DeepSpeed ZeRO stage; null: the launcher's, which is no DeepSpeed under plain python."
    )
    hang_timeout: str = Field(
        "15m",
        description="A process without a step, evaluation or save for this time ends the job and prints its stacks.",
    )
    deepspeed: str | None = Field(
        None, description="DeepSpeed JSON file with extra options; it may not contradict other settings."
    )

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _stage_is_a_number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("hang_timeout", mode="before")
    @classmethod
    def _hang_timeout_is_a_duration(cls, value: Any) -> Any:
        return _duration(value)

    @property
    def hang_seconds(self) -> float:
        return parse_duration(self.hang_timeout)


class TrackingConfig(Config):
    """Weights & Biases. Runs are recorded in their own directory in any case."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: WANDB_MODE if set; else online where an API key is found, else offline."
    )
    project: str = Field("mini-llm", min_length=1, description="W&B project.")
    group: str | None = Field(
        None, description="W&B group; null: the name of the run that pretrained, for all stages that use its model."
    )
    tags: list[str] = Field([], description="W&B tags.")
    norms_every: int | None = Field(
        None,
        ge=1,
        description="Steps between rows of layers.jsonl: norms of gradient and update by layer; null: none. "
        "Copies the weights in those steps.",
    )
    histograms_every: int | None = Field(
        None, ge=1, description="Steps between histograms of gradients and weights by layer; null: none."
    )
    samples: int = Field(
        0, ge=0, description="Validation texts that a decoder continues, or a classifier labels, at each evaluation."
    )

    @property
    def by_layer(self) -> bool:
        """Whether layers are recorded at all."""
        return bool(self.norms_every or self.histograms_every)


class LoopConfig(Config):
    """Settings of the training loop. Intervals left at null follow from the budget and the measured speed."""

    max_steps: int | None = Field(
        None, ge=1, description="Largest number of optimizer steps; null: by epochs and budget."
    )
    budget: str | None = Field(None, description="Wall time of training (30s, 10m, 4h); null: no limit.")
    seed: int = Field(0, ge=0, description="Seed; data order, masks and dropout depend on (seed, step) only.")
    log_every: int = Field(1, ge=1, description="Steps between rows of metrics.jsonl.")
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between evaluations; null: about six in a run, within 6 % of its time."
    )
    save_every: int | None = Field(None, ge=1, description="Steps between checkpoints; null: about one a minute.")
    keep_last: int = Field(2, ge=1, description="Number of checkpoints to keep.")
    checkpoint: Literal["full", "sharded"] = Field(
        "full", description="full: whole tensors, gathered on rank 0; sharded: each rank writes its own shards."
    )
    load_best: bool = Field(
        True, description="true: model/ gets the weights of the best evaluation; false: those of the last step."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without improvement; null: never."
    )
    optim: OptimConfig = Field(OptimConfig(), description="Optimizer and learning rates.")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="Learning-rate schedule.")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="Device, precision, compilation, memory.")

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_a_duration(cls, value: Any) -> Any:
        return None if value is None else _duration(value)

    @property
    def budget_seconds(self) -> float | None:
        return parse_duration(self.budget) if self.budget else None


# A run may be resumed with other values of these keys: they change how its steps are computed and recorded, not which.
HARMLESS = (
    *("log_every", "evaluate_every", "save_every", "keep_last", "checkpoint", "patience", "micro_batch_size"),
    *("runtime.compile", "runtime.zero_stage", "runtime.deepspeed", "runtime.precision"),
    *("runtime.gradient_checkpointing", "runtime.hang_timeout", "runtime.threads", "runtime.logit_rows"),
    *("runtime.attention",),
)
