"""Hugging Face datasets, by name from the Hub (or its cache) or from a folder written by `save_to_disk`."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mini_llm.corpus.paths import FORMATS, HUB_PREFIX, nearest
from mini_llm.engine.errors import DataError, MissingColumnError

BATCH = 100  # rows read at once; few, since documents can be long


def load_hub(path: str, split: str, streaming: bool) -> Any:
    """Load the dataset `org/name[:config]` with `datasets.load_dataset`. Raises DataError with advice."""
    import datasets

    name, _, config = path.removeprefix(HUB_PREFIX).partition(":")
    _announce(path)
    try:
        return datasets.load_dataset(name, config or None, split=split, streaming=streaming)
    except Exception as error:  # the Hub, its cache and its file readers raise dozens of unrelated types
        raise _cannot_load(path, f"configuration {config or 'default'}, split {split}", error) from None


def hub_commit(path: str) -> str:
    """Return the commit of the dataset's main branch, which identifies its content. Raises DataError."""
    import huggingface_hub

    name = path.removeprefix(HUB_PREFIX).partition(":")[0]
    _announce(path)
    try:
        return str(huggingface_hub.HfApi().dataset_info(name).sha)
    except Exception as error:  # as above
        raise _cannot_load(path, "its commit, needed for streaming", error) from None


def load_saved(path: str, split: str) -> Any:
    """Load a folder written by `save_to_disk`; for a DatasetDict, return `split`. Raises DataError."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(Path(os.path.expanduser(path))))
    except Exception as error:  # as above: Arrow, JSON and file errors
        raise DataError(f"{path}: not a readable save_to_disk folder: {type(error).__name__}: {error}") from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise DataError(f"{path}: no split '{split}'; it has: {', '.join(map(str, dataset))}")
        return dataset[split]
    return dataset


def iter_dataset(dataset: Any, columns: list[str], name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Dataset or IterableDataset. A ClassLabel becomes its name, or None for -1 (no label)."""
    found = dataset.column_names
    if columns and found is not None:
        missing = [column for column in columns if column not in found]
        if missing:
            listed = ", ".join(map(repr, found))
            raise MissingColumnError(f"{name}: no column '{missing[0]}'; the columns are: {listed}", missing[0])
        dataset = dataset.select_columns(columns)
    names = {column: feature.names for column, feature in (dataset.features or {}).items() if hasattr(feature, "names")}
    try:
        for batch in dataset.iter(batch_size=BATCH):
            for column, labels in names.items():
                batch[column] = [labels[v] if v is not None and v >= 0 else None for v in batch[column]]
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))
    except OSError as error:
        raise DataError(f"{name}: reading failed: {type(error).__name__}: {error}; run the command again") from None


@cache
def _announce(path: str) -> None:
    print(f"{path}: not a local path; looking it up on the Hugging Face Hub", file=sys.stderr, flush=True)


def _cannot_load(path: str, what: str, error: Exception) -> DataError:
    name = path.removeprefix(HUB_PREFIX).partition(":")[0]
    return DataError(
        f"{path}: not a local file or folder, and the Hugging Face dataset '{name}' ({what}) "
        f"cannot be loaded: {type(error).__name__}: {error}\n{nearest(Path(name))}"
        f"Sources that need no network: {FORMATS}. On a connected machine 'hf download {name} --repo-type dataset "
        "--local-dir DIR' downloads the files; copy DIR here and name the files in it."
    )
