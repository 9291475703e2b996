"""Write tokens as shards; complete shards survive a kill.

tokens-00000.bin: the ids of whole documents, one after another, little-endian uint16 or uint32.
documents-00000.bin: one row (tokens, UTF-8 bytes of the text, file, row) per document, little-endian uint32;
    `file` numbers the files of all shards in the order they were read, `row` is 0 for a whole file.
shard-00000.json: counts, sizes and hashes of both; written last, so its presence marks a complete shard.
"""

import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, NonNegativeInt

from mini_llm.corpus.sources import Origin
from mini_llm.engine.errors import DataError
from mini_llm.engine.run.files import sha256, write_json
from mini_llm.engine.run.state import read_object

SHARD_TOKENS = 32 << 20
BATCH_BYTES = 2 << 20
COLUMNS = 4  # of a documents file: tokens, bytes, file, row


class Shard(BaseModel):
    """What shard-00000.json holds, and the manifest of a store for each of its shards."""

    tokens: NonNegativeInt
    documents: NonNegativeInt
    bytes: NonNegativeInt
    tokens_file: str
    tokens_sha256: str
    documents_file: str
    documents_sha256: str


class ShardWriter:
    """Tokenizes documents in batches of about 2 MB of text and writes them below `directory`.

    Keeps complete shards found there and skips the documents they hold, so documents must come in the same order.
    Stores a document as bos + tokens + eos, leaving out those that the tokenizer lacks.
    """

    def __init__(self, directory: Path, tokenizer: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.shards = _finished(directory)
        self.kept = len(self.shards)
        self._skip = sum(shard["documents"] for shard in self.shards)
        self._batch: list[tuple[str, Origin]] = []
        self._batch_bytes = 0
        self._sizes = array("I")  # tokens, bytes, file and row of each document in the open shard
        self._files: dict[str, int] = {}  # file name -> number, in the order read
        self._tokens = 0
        self._file: Any = None

    @property
    def files(self) -> list[str]:
        """Names of the files that documents came from, indexed by file number."""
        return list(self._files)

    def add(self, text: str, origin: Origin) -> bool:
        """Add a document. Return whether it completed a batch."""
        self._files.setdefault(origin.file, len(self._files))
        if self._skip:
            self._skip -= 1
            return False
        self._batch.append((text, origin))
        self._batch_bytes += len(text)
        if self._batch_bytes < BATCH_BYTES:
            return False
        self._flush()
        return True

    def finish(self) -> list[dict[str, Any]]:
        """Write the remaining documents. Return the descriptions of all shards, in order."""
        self._flush()
        self._close()
        names = {name for shard in self.shards for name in (shard["tokens_file"], shard["documents_file"])}
        for path in self.directory.iterdir():
            if path.suffix != ".json" and path.name not in names:
                path.unlink()  # left by a killed run whose shards ended elsewhere
        return self.shards

    def _flush(self) -> None:
        if not self._batch:
            return
        encoded = self.tokenizer.encode_batch([text for text, _ in self._batch])
        ids, counts = np.concatenate(encoded), np.array([len(one) for one in encoded])
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
            raise DataError(
                f"the tokenizer returned id {ids.max()}, outside its vocabulary of {self.tokenizer.vocab_size}"
            )
        before, after = self.tokenizer.document_frame
        ends = np.cumsum(counts)
        places = np.stack([ends - counts] * len(before) + [ends] * len(after), axis=1) if before + after else ends[:0]
        flat = np.insert(ids, places.reshape(-1), np.tile(before + after, len(ends)))  # (tokens of the batch,)
        for (text, origin), count in zip(self._batch, (counts + len(before) + len(after)).tolist(), strict=True):
            self._sizes.extend((count, len(text.encode()), self._files[origin.file], origin.row))
        if self._file is None:
            self._file = self._path("tokens", ".bin.tmp").open("wb")
        self._file.write(flat.astype(self.dtype).data)  # ndarray.tofile would hide the cause of a failed write
        self._tokens += len(flat)
        self._batch, self._batch_bytes = [], 0
        if self._tokens >= SHARD_TOKENS:
            self._close()

    def _close(self) -> None:
        if self._file is None:
            return
        _sync(self._file)
        tokens = _publish(self._path("tokens", ".bin.tmp"))
        with self._path("documents", ".bin.tmp").open("wb") as file:
            sizes = np.asarray(self._sizes, dtype="<u4")
            file.write(sizes.data)
            _sync(file)
        documents = _publish(self._path("documents", ".bin.tmp"))
        shard = {
            "tokens": self._tokens,
            "documents": len(sizes) // COLUMNS,
            "bytes": int(sizes[1::COLUMNS].sum(dtype=np.int64)),
            "tokens_file": tokens.name,
            "tokens_sha256": sha256(tokens),
            "documents_file": documents.name,
            "documents_sha256": sha256(documents),
        }
        write_json(self._path("shard", ".json"), shard)
        self.shards.append(shard)
        self._sizes, self._tokens, self._file = array("I"), 0, None

    def _path(self, kind: str, suffix: str) -> Path:
        return self.directory / f"{kind}-{len(self.shards):05d}{suffix}"


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _finished(directory: Path) -> list[dict[str, Any]]:
    """Return the leading complete shards of `directory`, verified by hash."""
    shards: list[dict[str, Any]] = []
    while (marker := directory / f"shard-{len(shards):05d}.json").is_file():
        shard = read_object(marker, Shard)
        for kind in ("tokens", "documents"):
            path = directory / f"{kind}-{len(shards):05d}.bin"
            if not shard or not path.is_file() or sha256(path) != shard[f"{kind}_sha256"]:
                return shards
        shards.append(shard)
    return shards


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish(temporary: Path) -> Path:
    return temporary.replace(temporary.with_suffix(""))
