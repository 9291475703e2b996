"""FinetuneConfig: the settings of a fine-tuning run."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from mini_llm.engine.config import RunName
from mini_llm.engine.settings import LoopConfig, OptimConfig, ScheduleConfig, TrackingConfig

from .data_config import DataConfig

Metric = Literal[
    "accuracy",
    "macro_f1",
    "mcc",
    "loss",
    "log_loss",
    "micro_f1",
    "exact_match",
    "hamming_loss",
    "rmse",
    "mae",
    "r2",
    "pearson",
    "rank_mae",
    "kappa",
    "entity_f1",
    "entity_precision",
    "entity_recall",
    "word_accuracy",
    "answer_f1",
]
TaskName = Literal["auto", "single_label", "multi_label", "regression", "ordinal", "pairs", "tokens", "questions"]


DROPOUT = 0.1
EMBEDDING_LR, FITTED_EMBEDDING_LR = 3e-3, 1e-3


class FinetuneOptimConfig(OptimConfig):
    """Optimizer and peak learning rates."""

    # Not Muon: a fine-tuning step has few tokens, and Muon's matrix products would take longer than the step itself.
    name: Literal["auto", "adamw", "muon"] = Field(
        "adamw",
        description="Optimizer. muon: Muon for hidden matrices, AdamW for the rest; auto: muon, also with ZeRO.",
    )
    # None until for_width chooses it; the optimizer is made from the result.
    lr: float | None = Field(  # ty: ignore[incompatible-attribute-override]
        None, description="Peak learning rate of AdamW; null: by the width of the model."
    )

    def for_width(self, hidden_size: int, starts_as_bag: bool = False) -> "FinetuneOptimConfig":
        """These settings with the learning rates filled in. starts_as_bag: the embeddings are fitted already.

        5e-4 for models of the size trained here, 32 / hidden_size**2 from a width of 512 on, which agrees with common
        practice: 5.4e-5 at 768 (BERT-base: 2e-5 to 5e-5, Devlin et al. 2018).
        """
        if self.lr is not None:
            return self
        if hidden_size >= 512:
            return self.model_copy(update={"lr": 32 / hidden_size**2})
        # After a short pretraining, embeddings are about ten times as large as in a new model: a learning rate that
        # suits the matrices would hardly change them, which is right where they are fitted already.
        rate = FITTED_EMBEDDING_LR if starts_as_bag else EMBEDDING_LR
        return self.model_copy(update={"lr": 5e-4, "embedding_lr": self.embedding_lr or rate})


class FinetuneConfig(LoopConfig):
    """Settings of one fine-tuning run."""

    model: str = Field("runs/gpt", min_length=1, description="Pretrained run, or Hugging Face model directory.")
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: train the same architecture from scratch, for comparison."
    )
    run: RunName | None = Field(None, description="Name under runs/; null: MODEL-classifier, with -NAME of the data.")
    task: TaskName = Field(
        "auto",
        description="What to learn; tokens: named entities, questions: answers in a text (docs/tasks.md); auto: by the "
        "data, else single_label.",
    )
    data: DataConfig = Field(DataConfig(), description="Labelled texts.")
    epochs: float = Field(8.0, gt=0, description="Passes over the training examples, at most.")
    budget: str | None = Field("2m", description="Wall time of training (30s, 10m, 4h); null: no limit.")
    batch_size: int = Field(32, ge=1, description="Examples per optimizer step, over all ranks.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Examples per forward pass on one rank, about; null: by the length of the texts."
    )
    evaluation_batch_size: int = Field(64, ge=1, description="Examples per forward pass in evaluation.")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: weight the loss so that every class has the same total weight."
    )
    metric: Metric = Field(
        "accuracy",
        description="Validation metric for choosing the best weights and early stopping; accuracy: with another task, "
        "its first metric.",
    )
    patience: int | None = Field(
        4, ge=1, description="Stop after this many evaluations without improvement; null: never."
    )
    teacher: Literal["auto", "none"] = Field(
        "auto",
        description="auto: learn from the labels and from a linear model (TF-IDF; LSA with enough text), which also "
        "labels data.unlabelled; none: from the labels alone.",
    )
    mixed_texts: int = Field(
        4,
        ge=0,
        le=100,
        description="Texts mixed from pieces of training texts, for each of these, that the teacher labels too where "
        "there are fewer unlabelled texts; 0: none.",
    )
    ensemble: Literal["auto", "none"] = Field(
        "auto",
        description="auto: store the linear teacher beside the model and pool both in predictions if validation gains; "
        "none: the model alone.",
    )
    continued_pretraining: float = Field(
        0.0,
        ge=0,
        le=0.8,
        description="Share of the budget for continued pretraining on the training and unlabelled texts; 0: none.",
    )
    pooling: Literal["auto", "cls", "mean"] = Field(
        "auto", description="State that the classifier reads, where the family has a choice (ModernBERT); auto: mean."
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout probability; null: 0 with a linear teacher, whose targets are soft, else 0.1.",
    )
    # Settings are replaced, never assigned to, so that the narrower class is safe.
    optim: FinetuneOptimConfig = Field(  # ty: ignore[incompatible-mutable-override]
        FinetuneOptimConfig(), description="Optimizer and learning rates."
    )
    schedule: ScheduleConfig = Field(ScheduleConfig(decay_ratio=0.9), description="Learning-rate schedule.")
    tracking: TrackingConfig = Field(TrackingConfig(), description="Weights & Biases.")

    @property
    def dropout_or_default(self) -> float:
        """The dropout probability of a run without a teacher."""
        return DROPOUT if self.dropout is None else self.dropout

    @property
    def data_paths(self) -> list[str]:
        """The paths that the name of the run is made from."""
        return [self.data.path]

    @property
    def run_name(self) -> str:
        source = Path(self.model)
        base = source.parent.name if source.name == "model" else source.name
        scratch = "scratch" if self.weights == "random" else ""
        return self.run or "-".join(filter(None, (base, "classifier", scratch, self.data.name)))
