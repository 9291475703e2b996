"""PretrainConfig: what a pretraining run is made of."""

from typing import Literal

from pydantic import Field, model_validator

from corpus.config import CorpusConfig
from engine.config import Config, RunName
from engine.loop import LoopConfig
from engine.tracking import TrackingConfig

ModelKind = Literal["gpt", "mlm"]


class ModelSizes(Config):
    """Sizes of the model under Hugging Face's names. What is left out follows from the budget (pretrain/plan.py)."""

    hidden_size: int | None = Field(None, ge=8)
    num_hidden_layers: int | None = Field(None, ge=1)
    num_attention_heads: int | None = Field(None, ge=1)
    num_key_value_heads: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=2)
    intermediate_size: int | None = Field(None, ge=8)
    max_position_embeddings: int | None = Field(None, ge=8, description="the context; also the length trained on")
    rope_theta: float = Field(10_000.0, gt=0)
    tie_word_embeddings: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)


class PretrainConfig(LoopConfig):
    """Everything about one pretraining run."""

    model: ModelKind = Field("gpt", description="gpt: decoder, next token; mlm: encoder, masked tokens")
    run: RunName | None = Field(None, description="name under runs/; default: the model and the corpus")
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: str | None = Field(None, description="tokenizer directory; default: trained on the corpus")
    vocab_size: int | None = Field(None, ge=300, description="pieces of a tokenizer trained here; default by rule")
    sizes: ModelSizes = ModelSizes()
    budget: str | None = "3m"
    max_epochs: float = Field(20.0, gt=0, description="passes over the corpus at most")
    global_batch_size: int | None = Field(None, ge=1, description="sequences per optimizer step, over all ranks")
    micro_batch_size: int | None = Field(None, ge=1, description="sequences per forward pass of one rank")
    mlm_probability: float = Field(
        0.3, gt=0, lt=1, description="share of tokens masked in training (0.15 in evaluation)"
    )
    causal_start: bool = Field(
        True, description="mlm: predict next tokens, as a decoder, until the learning rate begins to fall"
    )
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _micro_batches_divide(self) -> "PretrainConfig":
        if self.micro_batch_size and self.global_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) is not a multiple of "
                f"micro_batch_size ({self.micro_batch_size})"
            )
        return self

    @property
    def run_name(self) -> str:
        return self.run or "-".join(filter(None, (self.model, self.corpus.name)))
