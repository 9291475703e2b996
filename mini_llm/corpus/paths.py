"""Tell what the path of a source names: files on disk or a Hugging Face dataset."""

import difflib
import glob
import os
import re
from pathlib import Path, PurePath

from mini_llm.corpus.stream import InputStream
from mini_llm.engine.errors import DataError

HUB_PREFIX = "hf://datasets/"
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet")
TEXTS = (".txt", ".text", ".md", *COMPRESSED)
# train.csv, train-00000-of-00002.parquet, dev_matched.tsv; not trainer.csv.
SPLIT_NAME = re.compile(r"(train|training|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)
PARTS = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation"}
FORMATS = (
    "a text file, a folder, a glob, .jsonl or .json, .csv, .tsv (each also .gz, .zst, .bz2, .xz), .parquet, "
    "or a folder written by datasets' save_to_disk"
)


def plain_suffixes(name: str) -> list[str]:
    """Return the suffixes that tell how to read a file: ['.jsonl', '.gz'] for 'a.b.jsonl.gz', ['.txt'] for 'a.txt'."""
    suffixes = PurePath(name).suffixes
    return suffixes[-2:] if suffixes[-1:] and suffixes[-1].lower() in COMPRESSED else suffixes[-1:]


def table_format(path: Path | InputStream) -> str | None:
    """Return the table suffix of a file ('.csv' for 'a.csv.gz'), or None for plain text."""
    if isinstance(path, InputStream):
        return path.kind
    suffixes = [suffix.lower() for suffix in plain_suffixes(path.name)]
    return suffixes[0] if suffixes and suffixes[0] in TABLES else None


def is_hub_name(path: str) -> bool:
    """Return whether `path` is read from the Hugging Face Hub: `org/name[:config]`, when no local path has that name.

    `hf://datasets/org/name` always means the Hub. A name below an existing folder, or with the suffix of a file, counts
    as a misspelt local path.
    """
    if path.startswith(HUB_PREFIX):
        return True
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.+-]+)?", path) or path.startswith("."):
        return False
    suffixes = [suffix.lower() for suffix in plain_suffixes(path)]
    looks_local = any(suffix in (*TABLES, *COMPRESSED, ".txt", ".md", ".text") for suffix in suffixes)
    return not looks_local and not os.path.isdir(path.partition("/")[0])


def find_files(path: str) -> list[Path]:
    """Return the files that a file, folder or glob names, sorted; hidden files and folders in a folder are skipped.

    Raises DataError for a path that does not exist (naming the nearest one), matches nothing or is not a regular file.
    """
    place = Path(os.path.expanduser(path))
    if place.is_file():
        return [place]
    if place.is_dir():
        files = []
        for folder, folders, names in os.walk(place):
            # os.walk descends only into the folders left in this list, so prune it in place.
            folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
            files += [Path(folder, name) for name in names if not name.startswith(".")]
        files = sorted((f for f in files if f.is_file()), key=lambda f: f.relative_to(place).as_posix())
        if not files:
            raise DataError(f"{path}: the folder holds no files (hidden files are not read)")
        return files
    if glob.has_magic(path):
        files = [Path(name) for name in sorted(glob.glob(str(place), recursive=True)) if os.path.isfile(name)]
        if not files:
            raise DataError(f"{path}: the pattern matches no files; quote it in the shell, and use ** for subfolders")
        return files
    if place.exists():
        raise DataError(
            f"{path}: not a regular file or folder. Write the data to a file first: it is read more than once"
        )
    raise DataError(f"{path}: no such file or folder. {nearest(place)}Sources can be: {FORMATS}, or a dataset org/name")


def named_splits(path: str) -> dict[str, list[Path]] | None:
    """Return the files of a folder by their part ("train", "validation", "test", "" for none), if their names tell it.

    A folder has splits if it holds a text file or table named train.* and another one named validation.* (valid, val,
    dev) or test.*; train-00000-of-00002.parquet counts too. None for other folders and paths.
    """
    place = Path(os.path.expanduser(path))
    if not place.is_dir() or saved_dataset(path):
        return None
    parts: dict[str, list[Path]] = {}
    for file in find_files(path):
        parts.setdefault(split_name(file) if file.parent == place else "", []).append(file)
    return parts if "train" in parts and ("validation" in parts or "test" in parts) else None


def split_name(file: Path) -> str:
    """Return "train", "validation" or "test" for a text file or table whose name begins so, else ""."""
    match = SPLIT_NAME.match(file.name)
    suffixes = [suffix.lower() for suffix in plain_suffixes(file.name)]
    if match is None or (table_format(file) is None and suffixes and suffixes[0] not in TEXTS):
        return ""
    return PARTS.get(match[1].lower(), match[1].lower())


def saved_dataset(path: str) -> bool:
    """Return whether `path` is a folder written by `save_to_disk` of the datasets library."""
    folder = Path(os.path.expanduser(path))
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def nearest(place: Path) -> str:
    """'Did you mean X? ' for the first missing component of `place`, or an empty string when no name is close."""
    existing = next((parent for parent in place.parents if parent.is_dir()), None)
    if existing is None:
        return ""
    wrong = place.relative_to(existing).parts[0]
    near = difflib.get_close_matches(wrong, sorted(os.listdir(existing)), 1, 0.5)
    return f"Did you mean {existing / near[0]}? " if near else ""
