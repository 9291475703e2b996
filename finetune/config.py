"""FinetuneConfig: what a fine-tuning run is made of."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from mini_llm.engine.config import RunName
from mini_llm.engine.settings import LoopConfig, OptimConfig, ScheduleConfig, TrackingConfig

from .data_config import DataConfig

Metric = Literal["accuracy", "macro_f1", "mcc", "loss"]


class FinetuneOptimConfig(OptimConfig):
    """AdamW: with the few tokens of a fine-tuning step, Muon's matrix products would cost more than the step itself."""

    name: Literal["auto", "adamw", "muon"] = "adamw"
    lr: float | None = Field(None, description="default: by the width of the model")

    def for_width(self, hidden_size: int) -> "FinetuneOptimConfig":
        """With a learning rate: 5e-4 for models of the size trained here, 32 / hidden_size**2 from a width of 512 on.

        That is what public models are fine-tuned with: 5.4e-5 at 768 (BERT-base: 2e-5 to 5e-5, Devlin et al. 2018).
        """
        if self.lr is not None:
            return self
        if hidden_size >= 512:
            return self.model_copy(update={"lr": 32 / hidden_size**2})
        # A short pretraining leaves embeddings some ten times as large as a fresh model's: a rate that suits the
        # matrices would hardly move them.
        return self.model_copy(update={"lr": 5e-4, "embedding_lr": self.embedding_lr or 3e-3})


class FinetuneConfig(LoopConfig):
    """Everything about one fine-tuning run."""

    model: str = Field("runs/gpt", min_length=1, description="pretrained run or Hugging Face directory")
    weights: Literal["pretrained", "random"] = Field("pretrained", description="random: the same model untrained")
    run: RunName | None = Field(None, description="name under runs/; default: the model's, -classifier, and the data")
    data: DataConfig = DataConfig()
    epochs: float = Field(8.0, gt=0, description="passes over the training examples at most")
    budget: str | None = "2m"
    batch_size: int = Field(32, ge=1, description="examples per optimizer step, over all ranks")
    micro_batch_size: int | None = Field(None, ge=1, description="examples per forward pass of one rank, about")
    evaluation_batch_size: int = Field(64, ge=1)
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: rare classes count for more")
    metric: Metric = Field("accuracy", description="the validation figure that chooses the weights and stops early")
    patience: int | None = Field(4, ge=1, description="evaluations without a better one before stopping early")
    dropout: float = Field(0.1, ge=0, lt=1)
    optim: FinetuneOptimConfig = FinetuneOptimConfig()
    schedule: ScheduleConfig = ScheduleConfig(decay_fraction=0.9)
    tracking: TrackingConfig = TrackingConfig()

    @property
    def run_name(self) -> str:
        source = Path(self.model)
        base = source.parent.name if source.name == "model" else source.name
        scratch = "scratch" if self.weights == "random" else ""
        return self.run or "-".join(filter(None, (base, "classifier", scratch, self.data.name)))
