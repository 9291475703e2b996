"""PretrainConfig: the settings of a pretraining run."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mini_llm.corpus.config import CorpusConfig, SourceConfig
from mini_llm.corpus.encoding import check_encoding
from mini_llm.engine.config import Config, RunName
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.settings import LoopConfig, TrackingConfig

from .preset_files import preset_path


class ModelSizes(Config):
    """Model sizes, under Hugging Face's names. null: chosen to suit the budget and the machine."""

    hidden_size: int | None = Field(None, ge=8, description="Width of the model.")
    num_hidden_layers: int | None = Field(
        None, ge=1, description="Number of layers; of encoder layers in an encoder-decoder."
    )
    num_decoder_layers: int | None = Field(
        None, ge=1, description="Encoder-decoder: number of decoder layers; null: num_hidden_layers."
    )
    num_attention_heads: int | None = Field(None, ge=1, description="Query heads per layer.")
    num_key_value_heads: int | None = Field(
        None, ge=1, description="Key/value heads per layer (grouped-query attention); null: num_attention_heads."
    )
    head_dim: int | None = Field(None, ge=2, description="Width of a head; null: hidden_size / num_attention_heads.")
    intermediate_size: int | None = Field(None, ge=8, description="Width of the MLP; null: by the architecture.")
    max_position_embeddings: int | None = Field(
        None, ge=4, description="Context length in tokens; also the length of training sequences."
    )
    rope_theta: float | None = Field(
        None, gt=0, description="Base of the rotary position embedding; null: the architecture's, else 10,000."
    )
    tie_word_embeddings: bool | None = Field(
        None, description="Share token embeddings with the output head; null: as the architecture says."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability.")


class PairsConfig(Config):
    """Pairs of source and target texts, for an encoder-decoder."""

    path: str | None = Field(
        None,
        min_length=1,
        description="Table (CSV, TSV, JSONL, Parquet), folder (its train, validation and test files are splits) or "
        "Hugging Face dataset of pairs.",
    )
    source: str = Field("source", description="Column of the source texts.")
    target: str = Field("target", description="Column of the target texts.")
    validation: str | None = Field(
        None, description="Table or dataset of validation pairs; null: validation_split or validation_fraction."
    )
    test: str | None = Field(None, description="Table or dataset of test pairs; null: score the validation pairs.")
    split: str = Field("train", description="Split of the dataset to train on.")
    validation_split: str | None = Field(
        None, description="Split of the dataset `validation` (without one: of `path`) to validate on."
    )
    test_split: str | None = Field(None, description="Split of the dataset `test` (without one: of `path`) to test on.")
    validation_fraction: float = Field(
        0.05, gt=0, le=0.5, description="Share of the pairs set aside when no validation data is given."
    )
    on_null: Literal["stop", "skip"] = Field(
        "stop", description="Rows without source or target: stop with an error, or skip and count them."
    )
    encoding: str | None = Field(
        None, description="Encoding of the tables, such as cp1252; null: UTF-8, or by the byte order mark."
    )
    task: Literal["restore"] | None = Field(
        None, description="restore: make pairs from the corpus, lower-cased words without punctuation -> sentence."
    )
    scored: int = Field(500, ge=1, description="Held-out pairs to decode and score at the end, at most.")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return check_encoding(value)

    @model_validator(mode="after")
    def _one_origin(self) -> "PairsConfig":
        if (self.path is None) == (self.task is None):
            raise ValueError("give either pairs.path=FILE or pairs.task=restore")
        given = [name for name in ("validation", "test", "validation_split", "test_split") if getattr(self, name)]
        if self.task and given:
            raise ValueError(f"pairs.task=restore has its own splits; leave pairs.{given[0]} out")
        return self

    def corpus(self, given: CorpusConfig) -> CorpusConfig:
        """The text to train a tokenizer for these pairs on: both columns, or the corpus of the task."""
        if self.path is None:
            return given
        columns = [
            SourceConfig(path=self.path, text=name, split=self.split, encoding=self.encoding)
            for name in (self.source, self.target)
        ]
        return given.model_copy(update={"sources": columns})


class PretrainConfig(LoopConfig):
    """Settings of one pretraining run."""

    model: str | None = Field(
        "gpt", description="Architecture: gpt, mlm, a file of configs/model/ without .yaml, or a path to a YAML file."
    )
    init: str | None = Field(
        None, description="Model directory or run to continue pretraining from; it sets the model, sizes and tokenizer."
    )
    run: RunName | None = Field(None, description="Name under runs/; null: from the model and the corpus.")
    corpus: CorpusConfig = Field(CorpusConfig(), description="Documents to train on.")
    pairs: PairsConfig | None = Field(None, description="Pairs of texts, for an encoder-decoder.")
    tokenizer: str | None = Field(None, description="Tokenizer directory; null: train one on the corpus.")
    vocab_size: int | None = Field(
        None, ge=300, description="Number of tokens of a tokenizer trained here; null: by the size of the corpus."
    )
    sizes: ModelSizes = Field(ModelSizes(), description="Model sizes.")
    budget: str | None = Field("3m", description="Wall time of training (30s, 10m, 4h); null: no limit.")
    max_epochs: float = Field(20.0, gt=0, description="Passes over the corpus, at most.")
    global_batch_size: int | None = Field(
        None, ge=1, description="Sequences per optimizer step, over all ranks; null: by budget and machine."
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="Sequences per forward pass on one rank; null: what suits the device."
    )
    mlm_probability: float = Field(
        0.3, gt=0, lt=1, description="Encoders: share of tokens masked in training (evaluation always masks 0.15)."
    )
    clm_warmup: bool = Field(
        True, description="Encoders: train with next-token prediction until the learning rate begins to fall."
    )
    init_embeddings: Literal["bigrams", "cooccurrence", "random"] = Field(
        "bigrams",
        description="Embeddings of a new model. bigrams: fit them and the head to next-token counts; cooccurrence: "
        "factorize counts of nearby tokens.",
    )
    tracking: TrackingConfig = Field(TrackingConfig(), description="Weights & Biases.")

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
            raise ValueError("model is empty; give model=NAME, or init=DIR")
        return self

    @property
    def run_name(self) -> str:
        return self.run or "-".join(filter(None, (self._model_name, self._data_name)))

    @property
    def data_paths(self) -> list[str]:
        """The paths that the name of the run is made from."""
        pairs = self.pairs
        return [source.path for source in (pairs.corpus(self.corpus) if pairs else self.corpus).sources]

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
