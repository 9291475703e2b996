"""DataConfig: the labelled texts of a fine-tuning run, and how they are split."""

import re
from itertools import combinations
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mini_llm.corpus.encoding import check_encoding
from mini_llm.engine.config import Config
from mini_llm.engine.errors import ConfigError

BUILT_IN = "stdlib"
BY_FILE = "file"


class DataConfig(Config):
    """Labelled texts and their split into training, validation and test."""

    path: str = Field(
        BUILT_IN,
        min_length=1,
        description="stdlib (built-in task), a file or glob (CSV, TSV, JSONL, Parquet), a folder (its train, "
        "validation and test files are splits), or a dataset org/name[:config].",
    )
    validation: str | None = Field(
        None, description="Validation data, like path; null: validation_split or validation_fraction."
    )
    test: str | None = Field(None, description="Test data, like path; null: score the validation texts.")
    text: str = Field("text", description="Column that holds the text; tokens: the words, questions: the context.")
    text_pair: str | None = Field(
        None, description="Column that holds the second text of a pair, or the question; null: none."
    )
    label: str = Field("label", description="Column that holds the label; tokens: the tags, questions: the answers.")
    label_separator: str = Field(
        ";", min_length=1, description="What separates the labels of a row (task=multi_label) where they are text."
    )
    label_order: list[str] = Field(
        [],
        description="Ordered labels (task=ordinal), lowest first; []: by number, or in natural order of their names.",
    )
    broken_tags: Literal["stop", "repair"] = Field(
        "stop",
        description="I-X that follows neither B-X nor I-X (task=tokens): stop with an error, or read it as B-X (IOB1).",
    )
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
        None,
        ge=4,
        description="Read this many tokens from the start of each text; null: as in pretraining, or with rotary "
        "positions up to 512 (1024 with mean pooling) if texts are longer.",
    )
    encoding: str | None = Field(
        None, description="Encoding of text files, such as cp1252 or utf-16; null: UTF-8, or by the byte order mark."
    )
    group: str | None = Field(
        None,
        description="Column whose equal values never stand on both sides of the validation split, such as an author; "
        "file: the rows of one file.",
    )
    shots: int | None = Field(
        None,
        ge=1,
        description="Train on this many rows of each label, drawn by the seed, and without validation data validate on "
        "as many others; null: on all rows.",
    )
    fold: str | None = Field(
        None,
        description="2/5: split the rows into five folds, score the second as test data and train on the others; null: "
        "no folds. finetune cross-validate runs all folds.",
    )
    leaks: Literal["drop", "keep"] = Field(
        "drop", description="Training rows whose text is also, exactly or nearly, in the validation or test data."
    )
    near_duplicates: bool | Literal["auto"] = Field(
        "auto",
        description="Seek near duplicates; auto: among 50,000 texts or 60 million characters, between the splits alone "
        "among 200,000 or 120 million.",
    )
    unlabelled: list[str] = Field(
        [],
        description="Texts without labels, to learn from: tables with the text column, text files (one text per line; "
        "in a folder or glob one per file), datasets.",
    )
    pretraining_text: Literal["auto", "none"] = Field(
        "auto",
        description="auto: without unlabelled, the pretraining corpus if it is at hand, helps the linear teacher and "
        "holds no scored texts; none: never.",
    )
    seed: int = Field(0, description="Seed of the split and of the shots.")

    @field_validator("unlabelled", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return check_encoding(value)

    @field_validator("fold")
    @classmethod
    def _one_of_the_folds(cls, value: str | None) -> str | None:
        if value is not None:
            found = re.fullmatch(r"([0-9]+)/([0-9]+)", value)
            if found is None or int(found[2]) < 2 or not 1 <= int(found[1]) <= int(found[2]):
                raise ValueError("write 2/5 for the second of five folds")
        return value

    @field_validator("label_order")
    @classmethod
    def _each_label_once(cls, value: list[str]) -> list[str]:
        twice = next((name for index, name in enumerate(value) if name in value[:index]), None)
        if twice is not None:
            raise ValueError(f"'{twice}' stands twice in it; name each label once")
        return value

    @model_validator(mode="after")
    def _built_in_task_has_its_own_splits(self) -> "DataConfig":
        own = ("validation", "test", "validation_split", "test_split", "group", "encoding", "fold")
        given = [key for key in own if getattr(self, key) is not None]
        if self.path == BUILT_IN and given:
            raise ValueError(f"the built-in task has its own splits; give path=FILE together with {', '.join(given)}")
        return self

    @model_validator(mode="after")
    def _a_fold_is_the_test_data(self) -> "DataConfig":
        given = [key for key in ("test", "test_split") if getattr(self, key) is not None]
        if self.fold is not None and given:
            raise ValueError(f"fold scores a part of the training rows, so leave out {given[0]}")
        return self

    @property
    def fold_of(self) -> tuple[int, int] | None:
        """(2, 5) for the second of five folds."""
        if self.fold is None:
            return None
        number, folds = self.fold.split("/")
        return int(number), int(folds)

    @property
    def name(self) -> str:
        """Short name for run directories: "" for the built-in task, "sst2" for .../sst2/train.tsv."""
        if self.path == BUILT_IN:
            return ""
        parts = [part.split(".")[0] for part in PurePath(self.path).parts if part.split(".")[0] and "*" not in part]
        while len(parts) > 1 and parts[-1].lower() in ("train", "training", "data"):
            parts.pop()
        return re.sub(r"[\W_]+", "-", parts[-1].lower()).strip("-")[:40] or "data" if parts else "data"


def check_columns(text: str, pair: str | None, label: str) -> None:
    """Raise ConfigError if two of the columns of a task are one: it would learn to copy."""
    columns = {"data.text": text, "data.text_pair": pair, "data.label": label}
    for (one, name), (other, same) in combinations(columns.items(), 2):
        if name == same:
            raise ConfigError(f"{one} and {other} both name the column '{name}'. Name different columns")
