"""Which files hold the training, validation and test texts: as configured, or by their names in a folder."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from mini_llm.corpus.paths import find_files, is_hub_name, saved_dataset, split_name, table_format
from mini_llm.engine.errors import DataError

from ..data_config import DataConfig
from .labels import listed


@dataclass
class Source:
    """Where the rows of one part come from: `files`, or if None the `split` of the dataset `path`.

    `by_name`: the files were taken because of their names, so that one without labels is no error.
    """

    path: str
    split: str
    files: list[Path] | None = None
    by_name: bool = False
    notes: list[str] = field(default_factory=list)


def find_sources(config: DataConfig) -> dict[str, Source]:
    """Return the sources of "train" and, where there are, "validation" and "test".

    In a folder with files named train.*, validation.* (valid, val, dev) or test.*, each is the part of its name; the
    settings `validation` and `test` come first. Raises DataError if validation or test reads the training rows.
    """
    sources = {"train": _source(config.path, config.split)}
    if sources["train"].files and Path(config.path).expanduser().is_dir():
        sources = _by_name(config.path, sources["train"].files)
    for part in ("validation", "test"):
        if not config.sets(part):
            continue
        source = _source(getattr(config, part) or config.path, getattr(config, f"{part}_split") or config.split)
        if _shares_rows(source, sources["train"]):
            raise DataError(
                f"the {part} data ({source.path}) is part of the training data ({config.path}): its scores would be "
                f"meaningless. Set data.{part}=FILE, or for a Hugging Face dataset with several splits "
                f"data.{part}_split=NAME"
            )
        sources[part] = source
    return sources


def _source(path: str, split: str) -> Source:
    return Source(path, split, None if is_hub_name(path) or saved_dataset(path) else find_files(path))


def _by_name(path: str, files: list[Path]) -> dict[str, Source]:
    """Sort the files of a folder into parts. Without a file named train, the unnamed ones are the training data."""
    parts: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        parts[split_name(file) if table_format(file) else ""].append(file)
    others = parts.pop("", [])
    if "train" not in parts:
        tables = [file for file in others if table_format(file)]
        if not parts or not tables:
            return {"train": Source(path, "train", files)}
        parts["train"], others = tables, [file for file in others if file not in tables]
    if len(parts) == 1 and not others:
        return {"train": Source(path, "train", files)}
    found = {
        part: Source(str(parts[part][0]) if len(parts[part]) == 1 else path, "train", parts[part], by_name=True)
        for part in ("train", "validation", "test")
        if part in parts
    }
    chosen = "; ".join(f"{part}: {listed([file.name for file in parts[part]], kind='')}" for part in found)
    rest = f"; not read: {listed([file.name for file in others], kind='')}" if others else ""
    found["train"].notes.append(f"{path}: files taken by name: {chosen}{rest}")
    return found


def _shares_rows(source: Source, train: Source) -> bool:
    """Return whether training reads the same split or file. Only datasets have splits; files are read whole."""
    if source.files is None or train.files is None:
        return (source.path, source.split) == (train.path, train.split)
    return bool({file.resolve() for file in source.files} & {file.resolve() for file in train.files})
