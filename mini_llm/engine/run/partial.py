"""An output file that survives a kill: rows go to FILE.partial, which becomes FILE when all rows are there.

FILE.partial.json says up to which input row and byte FILE.partial is complete, and for which model, input and options.
The same command cuts FILE.partial to that byte and continues with the next row, so that no row is missing or repeated.
`python -m finetune predict` and `python -m generate --file` write this way.
"""

import os
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from mini_llm.engine.errors import ConfigError, DataError
from mini_llm.engine.run.files import content_hash, read_json, sha256, write_json

STATE_INTERVAL = 0.2  # seconds between writes of the state
SYNC_INTERVAL = 5.0  # seconds between states that survive a power cut too
_BLOCK = 1 << 20


@dataclass(frozen=True)
class State:
    """Number of the last input row, rows and bytes written, CRC-32 of input and output. A command may add fields."""

    row: int = 0
    written: int = 0
    bytes: int = 0
    input_crc: int = 0
    output_crc: int = 0


class InputRow(Protocol):
    """A row of the input with its number, from 1. Its repr holds all that the output depends on."""

    @property
    def number(self) -> int: ...


S = TypeVar("S", bound=State)
R = TypeVar("R", bound=InputRow)


def model_hash(directory: Path) -> str:
    """Return one sha256 over the names and contents of all files of a model directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return content_hash([path.relative_to(directory).as_posix(), sha256(path)] for path in files)


class PartialOutput(Generic[S]):
    """Context manager for the output file `path`. `key`: what must be equal to continue an earlier FILE.partial.

    `kind` is State or a subclass with more fields. Raises ConfigError if FILE.partial was begun with another key or is
    in use, DataError if it cannot be written.
    """

    def __init__(self, path: Path, key: dict[str, str], kind: type[S]) -> None:
        self.path, self.key, self.kind = path, key, kind
        self.partial = path.with_name(path.name + ".partial")
        self.state_file = path.with_name(path.name + ".partial.json")
        self.state = kind()
        self.file: CheckedText
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        self._durable = kind()
        self._stated = self._synced = time.monotonic()

    def __enter__(self) -> "PartialOutput[S]":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self.state = self._earlier() or self.kind()
            self._durable = self.state
            self._raw: BinaryIO = self.partial.open("r+b" if self.state.bytes else "wb")
            self._raw.truncate(self.state.bytes)
            self._raw.seek(self.state.bytes)
        except Timeout:
            raise ConfigError(
                f"{self.partial}: another command is writing it. Wait, or choose another --output"
            ) from None
        except OSError as error:
            self._lock.release()
            raise DataError(
                f"{self.path}: cannot be written: {error.strerror or error}; choose another --output"
            ) from None
        except ConfigError:
            self._lock.release()
            raise
        self.file = CheckedText(self._raw, self.state.bytes, self.state.output_crc)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._sync()
                os.replace(self.partial, self.path)
                self.state_file.unlink(missing_ok=True)
            elif self.state.written:
                self._write_state()
                print(f"{self.partial} holds {self.state.written:,} rows: the same command continues", file=sys.stderr)
        finally:
            self._raw.close()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def skip_done(self, rows: Iterator[R], source: str) -> Iterator[R]:
        """Yield the rows after the last one written. Raises DataError if the rows before are not those of last time."""
        done, crc = self.state.row, 0
        for row in rows:
            if row.number > done:
                break
            crc = row_crc(row, crc)
        else:
            row = None
        if crc != self.state.input_crc:
            raise DataError(
                f"{source}: its first {done:,} rows are not those that {self.partial} was begun with. "
                f"Give the same file, choose another --output, or delete {self.partial} to start again"
            )
        if row is not None:
            yield row
            yield from rows

    def commit(self, rows: Sequence[InputRow], **counts: Any) -> None:
        """Record that `rows` are written, with the given fields of State. Call it after the last of them."""
        crc = self.state.input_crc
        for row in rows:
            crc = row_crc(row, crc)
        self.state = replace(
            self.state,
            row=rows[-1].number,
            written=self.state.written + len(rows),
            bytes=self.file.bytes,
            input_crc=crc,
            output_crc=self.file.crc,
            **counts,
        )
        self._raw.flush()
        now = time.monotonic()
        if now - self._synced >= SYNC_INTERVAL:
            self._sync()
            self._synced = now
        if now - self._stated >= STATE_INTERVAL:
            self._write_state()
            self._stated = now

    def _sync(self) -> None:
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._durable = self.state

    def _write_state(self) -> None:
        # Only `durable` is sure to be on disk after a power cut; the checksum tells whether `latest` is.
        write_json(self.state_file, {**self.key, "latest": asdict(self.state), "durable": asdict(self._durable)})

    def _earlier(self) -> S | None:
        """Return the newest state that FILE.partial agrees with, or None to start anew."""
        tree = read_json(self.state_file)
        if not isinstance(tree, dict) or not self.partial.is_file():
            return None
        different = [name for name, value in self.key.items() if tree.get(name) != value]
        if different:
            raise ConfigError(
                f"{self.partial} was begun with other {different[0]} (then {tree.get(different[0])}, now "
                f"{self.key[different[0]]}). Give the same again, choose another --output, or delete it to start again"
            )
        for name in ("latest", "durable"):
            try:
                state = TypeAdapter(self.kind).validate_python(tree.get(name))
                if (
                    state.bytes <= self.partial.stat().st_size
                    and _file_crc(self.partial, state.bytes) == state.output_crc
                ):
                    return state
            except ValidationError:
                continue
        return None


class CheckedText:
    """Writes text as UTF-8 to a binary file; counts its bytes and their CRC-32."""

    def __init__(self, raw: BinaryIO, size: int, crc: int) -> None:
        self._raw, self.bytes, self.crc = raw, size, crc

    def write(self, text: str, /) -> int:
        data = text.encode("utf-8", "replace")
        self._raw.write(data)
        self.bytes += len(data)
        self.crc = zlib.crc32(data, self.crc)
        return len(text)

    def flush(self) -> None:
        self._raw.flush()


def row_crc(row: InputRow, crc: int) -> int:
    """Return the checksum of a row after rows with the checksum `crc`."""
    return zlib.crc32(repr(row).encode("utf-8", "surrogatepass"), crc)


def _file_crc(path: Path, size: int) -> int:
    """Return the checksum of the first `size` bytes of a file."""
    crc = 0
    with path.open("rb") as file:
        while size > 0 and (data := file.read(min(size, _BLOCK))):
            crc, size = zlib.crc32(data, crc), size - len(data)
    return crc
