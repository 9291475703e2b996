"""Which documents to read, and how to split them into training and validation.

sources: input.txt
sources: [{path: "data/*.jsonl.gz", text: body, weight: 2.0}, stdlib]
sources: {path: "org/name:config", split: train, text: text, streaming: true}
"""

import re
import unicodedata
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mini_llm.corpus.encoding import check_encoding
from mini_llm.corpus.paths import HUB_PREFIX, is_hub_name, plain_suffixes
from mini_llm.engine.config import Config

STDLIB = "stdlib"
# The setting for the column of the text, for error messages.
TEXT_SETTING = "corpus.sources.0.text=COLUMN (0: the first source)"


class SourceConfig(Config):
    """One source of documents. A plain string stands for its path."""

    path: str = Field(
        min_length=1,
        description="stdlib (the source code of the running Python), a file, a folder, a glob, or a Hugging Face "
        "dataset org/name or org/name:config.",
    )
    text: str = Field("text", description="Column that holds the text; for tables and datasets.")
    split: str = Field("train", description="Split of a Hugging Face dataset.")
    encoding: str | None = Field(
        None, description="Encoding of text files and tables, such as cp1252; null: UTF-8, or by the byte order mark."
    )
    streaming: bool = Field(False, description="Stream a Hugging Face dataset; local files are always streamed.")
    weight: float = Field(
        1.0, gt=0, le=1000, description="2.0: use each document twice; 0.5: use half of them, chosen by hash."
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return check_encoding(value)

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @property
    def name(self) -> str:
        """A short name: the file name without suffixes, the folder, or the dataset."""
        if is_hub_name(self.path):
            return self.path.removeprefix(HUB_PREFIX).partition("/")[2].replace(":", "-")
        parts = [part for part in PurePath(self.path).parts if not re.search(r"[*?\[]", part)]
        last = parts[-1] if parts else "corpus"
        return last.removesuffix("".join(plain_suffixes(last))) or last


class CorpusConfig(Config):
    """Documents and their train/validation split."""

    sources: list[SourceConfig] = Field(
        default=[SourceConfig(path=STDLIB)], min_length=1, description="Where to read: one path, or a list of sources."
    )
    validation: list[SourceConfig] = Field(
        default=[], description="Validation sources. If given, nothing is split off, and these are never trained on."
    )
    validation_fraction: float | None = Field(
        None, gt=0, lt=1, description="Share of the text set aside; null: 0.02 with hash; 0.1 with tail."
    )
    split: Literal["auto", "hash", "tail"] = Field(
        "auto",
        description="hash: whole documents, chosen by hash; tail: the end of each document (at most 4 Mi characters); "
        "auto: tail for fewer than 20 documents, else hash.",
    )
    separator: str | None = Field(
        None,
        min_length=1,
        description="What ends a document inside a text file: line (each line is one), blank-line, or a text such as "
        "<|endoftext|>; null: a file is one document.",
    )
    deduplicate: bool = Field(True, description="Drop exact duplicates of documents.")
    on_invalid: Literal["replace", "stop"] = Field(
        "replace", description="Bytes that are not valid UTF-8 or UTF-16: replace them, or stop with an error."
    )
    seed: int = Field(0, ge=0, lt=2**64, description="Salt of the hashes that split and weight documents.")

    @field_validator("sources", "validation", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, dict, SourceConfig)) else value

    @property
    def name(self) -> str:
        """Short slug for run names; empty for the built-in corpus."""
        if all(source.path == STDLIB for source in self.sources):
            return ""
        joined = "-".join(dict.fromkeys(source.name for source in self.sources))
        name = unicodedata.normalize("NFC", joined)
        return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:40].rstrip("-.") or "corpus"
