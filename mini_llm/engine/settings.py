"""Settings that the training stages share. No torch: a configuration error is found before it is imported."""

from typing import Any, Literal

from pydantic import Field, field_validator

from mini_llm.engine.cli import parse_duration
from mini_llm.engine.config import Config

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class OptimConfig(Config):
    """Peak learning rates and what goes with them. `lr` is AdamW's, `muon_lr` is that of the matrices under Muon."""

    # auto: Muon, under DeepSpeed ZeRO too.
    name: Literal["auto", "adamw", "muon"] = "auto"
    lr: float = 3e-3
    muon_lr: float = 0.02
    # AdamW's for token and position embeddings; None: lr.
    embedding_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-10
    momentum: float = 0.95
    weight_decay: float = 0.01
    # 0 turns clipping off; the norm is still measured.
    max_grad_norm: float = 1.0


class ScheduleConfig(Config):
    """`linear`: warm up, stay, fall linearly to `min_ratio` over the last `decay_fraction` of the steps
    (Bergsma et al. 2025, "Straight to Zero"). `cosine`: warm up, then half a cosine down to `min_ratio`."""

    kind: Literal["linear", "cosine"] = "linear"
    warmup_steps: int = 10
    decay_fraction: float = 0.5
    min_ratio: float = 0.0


class RuntimeConfig(Config):
    """How a run uses the machine. Processes and addresses come from the launcher (python, torchrun, accelerate)."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Precision = "auto"
    # auto: where it pays within the time of a pretraining (pretrain/plan/sizes.py); never in fine-tuning, whose lengths vary.
    compile: bool | Literal["auto"] = "auto"
    # 0 keeps all activations, 1 recomputes every block in the backward pass, n every n-th.
    gradient_checkpointing: int = 0
    # None: what the launcher says (ACCELERATE_USE_DEEPSPEED), which is no DeepSpeed under plain python.
    zero_stage: Literal[0, 1, 2, 3] | None = None
    # A process without progress (a step, an evaluation, a save) for so long ends the job with a dump of its stacks.
    hang_timeout: str = "15m"
    # A DeepSpeed JSON of your own, merged under ours: it may not contradict the rest of this configuration.
    deepspeed: str | None = None

    @field_validator("hang_timeout", mode="before")
    @classmethod
    def _hang_timeout_is_a_time(cls, value: Any) -> Any:
        parse_duration(str(value))
        return str(value)

    @property
    def hang_seconds(self) -> float:
        return parse_duration(self.hang_timeout)


class TrackingConfig(Config):
    """Where the record of a run goes, beside its own directory."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: WANDB_MODE wins; else online where a key is present; else offline"
    )
    project: str = Field("mini-llm", min_length=1, description="W&B project")
    group: str | None = Field(None, description="W&B group: the runs of one experiment")
    tags: list[str] = Field([], description="W&B tags")


class LoopConfig(Config):
    """What the loop reads. Steps and cadences left at None follow from the budget and the measured speed."""

    max_steps: int | None = Field(None, ge=1, description="optimizer steps at most")
    budget: str | None = Field(None, description="wall time of training (30s, 10m, 4h); None: no bound")
    seed: int = Field(0, ge=0, description="data order, masks and dropout are functions of (seed, step)")
    log_every: int = Field(1, ge=1, description="steps between rows of metrics.jsonl")
    evaluate_every: int | None = Field(None, ge=1, description="steps between evaluations on the validation set")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; None: about one a minute")
    keep_last: int = Field(2, ge=1, description="checkpoints kept")
    checkpoint: Literal["gathered", "sharded"] = Field(
        "gathered", description="whole tensors, gathered on one machine; sharded: each rank writes what it holds"
    )
    keep: Literal["best", "last"] = Field("best", description="which weights become model/")
    patience: int | None = Field(None, ge=1, description="evaluations without a better one before stopping early")
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_a_time(cls, value: Any) -> Any:
        if value is None:
            return None
        parse_duration(str(value))
        return str(value)

    @property
    def budget_seconds(self) -> float | None:
        return parse_duration(self.budget) if self.budget else None


# Keys that may change between launches of one run: how the same steps are computed and recorded, not which ones.
HARMLESS = (
    *("log_every", "evaluate_every", "save_every", "keep_last", "checkpoint", "patience", "micro_batch_size"),
    *("runtime.compile", "runtime.zero_stage", "runtime.deepspeed", "runtime.precision"),
    *("runtime.gradient_checkpointing", "runtime.hang_timeout"),
)
