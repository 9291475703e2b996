"""Read a token store; build.py describes its files."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from mini_llm.corpus.documents import Split
from mini_llm.corpus.shard_writer import COLUMNS, Shard, token_dtype
from mini_llm.corpus.sources import Origin
from mini_llm.engine.errors import DataError
from mini_llm.engine.run.files import open_regular, sha256
from mini_llm.engine.run.state import describe

FORMAT = 2
MANIFEST = "manifest.json"


class Manifest(BaseModel):
    """What readers use of manifest.json."""

    fingerprint: str
    documents: NonNegativeInt
    bytes: NonNegativeInt
    vocab_size: PositiveInt
    unigram_entropy: float
    split: Split
    shards: list[Shard]
    files: list[str]


class TokenStore:
    """The tokens of one part of a corpus, memory-mapped. Each document is bos + its tokens + eos."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]  # of the sources' content and the split
        self.num_documents: int = manifest["documents"]
        self.num_bytes: int = manifest["bytes"]  # UTF-8 bytes of the text
        self._starts = np.cumsum([0] + [shard["tokens"] for shard in manifest["shards"]])  # of each shard, then the end

    @classmethod
    def open(cls, path: Path | str) -> "TokenStore":
        """Open `root/<key>/train` or `.../validation`. Raises DataError naming the file that is missing or damaged."""
        path = Path(path)
        try:
            with open_regular(path / MANIFEST) as file:
                manifest = json.loads(file.read())
            if manifest["format"] != FORMAT:
                raise DataError(
                    f"{path}: token store has format {manifest['format']}, this version reads {FORMAT}; "
                    f"remove {path.parent} to rebuild it"
                )
            Manifest.model_validate(manifest)
            store = cls(path, manifest)
            item = token_dtype(manifest["vocab_size"]).itemsize
            for shard in manifest["shards"]:
                _check_size(path, shard["tokens_file"], shard["tokens"] * item)
                _check_size(path, shard["documents_file"], shard["documents"] * 4 * COLUMNS)
        except FileNotFoundError:
            raise DataError(f"{path}: not a token store (no {MANIFEST}); tokenizing a corpus writes one") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = describe(error) if isinstance(error, ValidationError) else repr(error)
            raise DataError(
                f"{path / MANIFEST}: cannot be read ({reason}); remove {path.parent}, it is rebuilt"
            ) from None
        return store

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling would copy the memory map; a worker process opens its own instead.
        return TokenStore.open, (self.path,)

    def read(self, start: int, count: int) -> np.ndarray:
        """Return a copy of tokens start to start + count as (n,) int64; n < count at the end of the store."""
        if start < 0 or count < 0:
            raise ValueError(f"start {start} and count {count} must not be negative")
        stop = min(start + count, len(self))
        tokens = np.empty(max(stop - start, 0), dtype=np.int64)
        shard, done = int(np.searchsorted(self._starts, start, side="right")) - 1, 0
        while done < len(tokens):
            offset = start + done - int(self._starts[shard])
            found = self._shards[shard][offset : offset + len(tokens) - done]
            tokens[done : done + len(found)] = found
            shard, done = shard + 1, done + len(found)
        return tokens

    @property
    def offsets(self) -> np.ndarray:
        """Start of each document, then the end of the last, in tokens: (num_documents + 1,) int64."""
        return self._documents[0]

    @property
    def document_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each document's text: (num_documents,) int64."""
        return self._documents[1]

    def origins(self, start: int, count: int) -> list[Origin]:
        """Return the origins of the documents that overlap tokens start to start + count, in order."""
        first, last = np.searchsorted(self.offsets, [start, start + count - 1], side="right") - 1
        files = self.manifest["files"]
        return [Origin(files[file], int(row)) for file, row in self._documents[2][first : last + 1]]

    def unigram_entropy(self) -> float:
        """Return the entropy of the unigram distribution in nats per token, without bos and eos."""
        return float(self.manifest["unigram_entropy"])

    def verify(self) -> None:
        """Hash every shard and compare with the manifest. Raises DataError naming the file that differs."""
        for shard in self.manifest["shards"]:
            for kind in ("tokens", "documents"):
                file = self.path / shard[f"{kind}_file"]
                if sha256(file) != shard[f"{kind}_sha256"]:
                    raise DataError(
                        f"{file}: the file has changed since it was written; remove {self.path.parent} to rebuild it"
                    )

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        dtype = token_dtype(self.manifest["vocab_size"])
        return [np.memmap(self.path / shard["tokens_file"], dtype, "r") for shard in self.manifest["shards"]]

    @cached_property
    def _documents(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        files = [self.path / shard["documents_file"] for shard in self.manifest["shards"]]
        sizes = np.concatenate([np.fromfile(file, "<u4") for file in files]).reshape(-1, COLUMNS).astype(np.int64)
        return np.concatenate([[0], np.cumsum(sizes[:, 0])]), sizes[:, 1].copy(), sizes[:, 2:].copy()


def _check_size(folder: Path, name: str, size: int) -> None:
    if Path(name).name != name:
        raise DataError(f"{folder / MANIFEST}: '{name}' is not a plain file name")
    file = folder / name
    found = file.stat().st_size if file.is_file() else None
    if found != size:
        state = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
        raise DataError(f"{file}: this shard {state}; remove {folder.parent} and run again to rebuild it")
