"""DataConfig: where labelled texts come from and how they are split."""

import re
from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from mini_llm.engine.config import Config

BUILT_IN = "stdlib"


class DataConfig(Config):
    """Labelled texts.

    path: "stdlib" (the built-in task), a file, folder or glob (CSV, TSV, JSONL, Parquet), or "org/name[:config]".
    validation, test: the same for scoring; `validation_split` and `test_split` name a split of a Hugging Face dataset,
        of `path` where `validation` or `test` is not given. Without validation, `validation_fraction` of the training
        texts is set aside, equally of each label; the test split is never used for it.
    on_null: rows without text or label stop the run, or are skipped and counted.
    max_length: tokens of a text that are read, from its beginning, special ones included; None: all that fit the model.
    """

    path: str = Field(default=BUILT_IN, min_length=1)
    validation: str | None = None
    test: str | None = None
    text: str = "text"
    label: str = "label"
    split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    validation_fraction: float = Field(default=0.1, gt=0, le=0.5)
    on_null: Literal["stop", "skip"] = "stop"
    max_length: int | None = Field(default=None, ge=4)
    seed: int = 0

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
