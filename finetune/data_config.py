"""DataConfig: the labelled texts of a fine-tuning run, and how they are split."""

import re
from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from mini_llm.engine.config import Config

BUILT_IN = "stdlib"


class DataConfig(Config):
    """Labelled texts and their split into training, validation and test."""

    path: str = Field(
        BUILT_IN,
        min_length=1,
        description="stdlib (the built-in task), a file, folder or glob (CSV, TSV, JSONL, Parquet), or a Hugging Face "
        "dataset org/name or org/name:config.",
    )
    validation: str | None = Field(
        None, description="Validation data, like path; null: validation_split or validation_fraction."
    )
    test: str | None = Field(None, description="Test data, like path; null: score the validation texts.")
    text: str = Field("text", description="Column that holds the text.")
    label: str = Field("label", description="Column that holds the label.")
    split: str = Field("train", description="Split of the dataset to train on.")
    validation_split: str | None = Field(
        None, description="Split of the dataset `validation` (without one: of `path`) to validate on."
    )
    test_split: str | None = Field(None, description="Split of the dataset `test` (without one: of `path`) to test on.")
    validation_fraction: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="Share of the training texts set aside, the same of each label, when no validation data is given.",
    )
    on_null: Literal["stop", "skip"] = Field(
        "stop", description="Rows without text or label: stop with an error, or skip and count them."
    )
    max_length: int | None = Field(
        None, ge=4, description="Read this many tokens from the start of each text; null: as many as the model reads."
    )
    seed: int = Field(0, description="Seed of the split.")

    @model_validator(mode="after")
    def _built_in_task_has_its_own_splits(self) -> "DataConfig":
        given = [k for k in ("validation", "test", "validation_split", "test_split") if getattr(self, k) is not None]
        if self.path == BUILT_IN and given:
            raise ValueError(f"the built-in task has its own splits; give path=FILE together with {', '.join(given)}")
        return self

    @property
    def name(self) -> str:
        """Short name for run directories: "" for the built-in task, "sst2" for .../sst2/train.tsv."""
        if self.path == BUILT_IN:
            return ""
        parts = [part.split(".")[0] for part in PurePath(self.path).parts if part.split(".")[0] and "*" not in part]
        while len(parts) > 1 and parts[-1].lower() in ("train", "training", "data"):
            parts.pop()
        return re.sub(r"[^a-z0-9]+", "-", parts[-1].lower()).strip("-")[:40] if parts else "data"
