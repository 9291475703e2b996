"""What to read and how to split it.

sources: input.txt
sources: [{path: "data/*.jsonl.gz", text: body, weight: 2.0}, stdlib]
sources: {path: "org/name:config", split: train, text: text, streaming: true}
"""

import re
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mini_llm.corpus.paths import HUB_PREFIX, is_hub_name, plain_suffixes
from mini_llm.engine.config import Config

STDLIB = "stdlib"


class SourceConfig(Config):
    """One place to read documents from; a plain string stands for its path."""

    path: str = Field(min_length=1)  # "stdlib" | file | folder | glob | "org/name" | "org/name:config"
    text: str = "text"  # the column that holds the text; tables only
    split: str = "train"  # Hugging Face datasets only
    streaming: bool = False  # Hugging Face datasets by name only; files are always streamed
    weight: float = Field(1.0, gt=0, le=1000)  # 2.0: each document twice; 0.5: half of the documents, chosen by hash

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @property
    def name(self) -> str:
        """A short name: the file without its suffixes, the folder, or the dataset."""
        if is_hub_name(self.path):
            return self.path.removeprefix(HUB_PREFIX).partition("/")[2].replace(":", "-")
        parts = [part for part in PurePath(self.path).parts if not re.search(r"[*?\[]", part)]
        last = parts[-1] if parts else "corpus"
        return last.removesuffix("".join(plain_suffixes(last))) or last


class CorpusConfig(Config):
    """The sources of a corpus and its train/validation split."""

    sources: list[SourceConfig] = Field(default=[SourceConfig(path=STDLIB)], min_length=1)
    validation: list[SourceConfig] = Field(default=[])  # given: no split is made, and no document of it is trained on
    # None: 0.02 by hash; by tail 0.1, at most 4 Mi characters of a document.
    validation_fraction: float | None = Field(None, gt=0, lt=1)
    # hash: a document is validation when its hash falls below the fraction, so it never moves; tail: the last
    # characters of each document; auto: tail below 20 documents or when the hash picks none, else hash.
    split: Literal["auto", "hash", "tail"] = "auto"
    deduplicate: bool = True
    on_invalid: Literal["replace", "stop"] = "replace"  # bytes that are not valid UTF-8 (or UTF-16)
    seed: int = Field(0, ge=0, lt=2**64)  # salts the hash that splits and weighs

    @field_validator("sources", "validation", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, dict, SourceConfig)) else value

    @property
    def name(self) -> str:
        """Short slug for run names; empty for the built-in corpus alone."""
        if all(source.path == STDLIB for source in self.sources):
            return ""
        joined = "-".join(dict.fromkeys(source.name for source in self.sources))
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", joined).strip("-.")[:40].rstrip("-.") or "corpus"
