"""PretrainConfig: what a pretraining run is made of."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mini_llm.corpus.config import CorpusConfig, SourceConfig
from mini_llm.engine.config import Config, RunName
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.settings import LoopConfig, TrackingConfig

from .presets import preset_path


class ModelSizes(Config):
    """Sizes of the model under Hugging Face's names. What is left out follows from the budget (pretrain/plan/sizes.py)."""

    hidden_size: int | None = Field(None, ge=8)
    num_hidden_layers: int | None = Field(None, ge=1)
    num_decoder_layers: int | None = Field(None, ge=1, description="encoder-decoder only; default: as many")
    num_attention_heads: int | None = Field(None, ge=1)
    num_key_value_heads: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=2)
    intermediate_size: int | None = Field(None, ge=8)
    max_position_embeddings: int | None = Field(None, ge=8, description="the context; also the length trained on")
    rope_theta: float | None = Field(None, gt=0, description="default: as the architecture says, else 10,000")
    tie_word_embeddings: bool | None = Field(None, description="default: as the architecture says, else true")
    dropout: float = Field(0.0, ge=0, lt=1)


class PairsConfig(Config):
    """Texts to turn into texts, for an encoder-decoder.

    path: a table (CSV, TSV, JSONL, Parquet) or Hugging Face dataset with the columns `source` and `target`; validation
        and test: the same for scoring; `validation_split` and `test_split` name a split of a dataset, of `path` where
        `validation` or `test` is not given. Without validation, `validation_fraction` of the pairs is set aside.
    task: "restore", in place of a path: sentences of the corpus, from their lower-cased words without punctuation.
    on_null: rows without source or target stop the run, or are skipped and counted.
    """

    path: str | None = Field(None, min_length=1)
    source: str = "source"
    target: str = "target"
    validation: str | None = None
    test: str | None = None
    split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    validation_fraction: float = Field(0.05, gt=0, le=0.5)
    on_null: Literal["stop", "skip"] = "stop"
    task: Literal["restore"] | None = None
    scored: int = Field(500, ge=1, description="held-out pairs that are decoded and scored at the end, at most")

    @model_validator(mode="after")
    def _one_origin(self) -> "PairsConfig":
        if (self.path is None) == (self.task is None):
            raise ValueError("give either pairs.path=FILE or pairs.task=restore")
        given = [name for name in ("validation", "test", "validation_split", "test_split") if getattr(self, name)]
        if self.task and given:
            raise ValueError(f"pairs.task=restore has its own splits; leave pairs.{given[0]} out")
        return self

    def corpus(self, given: CorpusConfig) -> CorpusConfig:
        """The text that a tokenizer for these pairs is trained on: both columns, or the corpus of the task."""
        if self.path is None:
            return given
        columns = [SourceConfig(path=self.path, text=name, split=self.split) for name in (self.source, self.target)]
        return given.model_copy(update={"sources": columns})


class PretrainConfig(LoopConfig):
    """Everything about one pretraining run."""

    model: str | None = Field("gpt", description="gpt, mlm, a file of configs/model/ (without .yaml), or a path to one")
    init: str | None = Field(None, description="model directory or run to go on from; it says model and sizes")
    run: RunName | None = Field(None, description="name under runs/; default: the model and the corpus")
    corpus: CorpusConfig = CorpusConfig()
    pairs: PairsConfig | None = Field(None, description="texts to turn into texts; encoder-decoders only")
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
    embeddings: Literal["bigrams", "cooccurrence", "random"] = Field(
        "bigrams",
        description="of a new model: fitted, with its head, to which token follows which, from the next; which tokens "
        "stand near each other, factorized; or at random",
    )
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _init_says_the_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("init"):
            for key, what in (("model", "architecture"), ("tokenizer", "tokenizer"), ("vocab_size", "tokenizer")):
                if values.get(key):
                    raise ValueError(f"init={values['init']} brings its own {what}; leave {key} out")
            return {**values, "model": None}
        return values

    @field_validator("model")
    @classmethod
    def _model_is_known(cls, model: str | None) -> str | None:
        if model is not None:
            try:
                preset_path(model)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return model

    @model_validator(mode="after")
    def _micro_batches_divide(self) -> "PretrainConfig":
        if self.micro_batch_size and self.global_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) is not a multiple of "
                f"micro_batch_size ({self.micro_batch_size})"
            )
        if not self.model and not self.init:
            raise ValueError("model is empty: name one, or give init=DIR")
        return self

    @property
    def run_name(self) -> str:
        return self.run or "-".join(filter(None, (self._model_name, self._data_name)))

    @property
    def _model_name(self) -> str:
        path = Path(self.init or self.model)
        name = path.parent.name if path.name == "model" else path.name
        return re.sub(r"[^\w.+-]+", "-", name.removesuffix(".yaml").removesuffix(".yml")).strip("-.") or "model"

    @property
    def _data_name(self) -> str:
        if self.pairs is None:
            return self.corpus.name or ("continued" if self.init else "")
        return "-".join(filter(None, (self.pairs.task, self.pairs.corpus(self.corpus).name)))
