"""Decode files to text in bounded chunks: compression, byte order marks, UTF-16, invalid bytes, binary files.

Text is kept unchanged: no newline is translated (CRLF stays CRLF), and only a byte order mark is stripped.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.stream import InputStream
from mini_llm.engine.errors import DataError

CHUNK = 1 << 20
SNIFF = 1 << 16  # bytes read to detect the encoding
# UTF-32 comes first, because its little-endian mark starts with the one of UTF-16.
MARKS = [
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]


def read_text(
    path: Path | InputStream, on_invalid: str, report: ReadReport, encoding: str | None = None
) -> Iterator[str]:
    """Yield the text of a file in chunks of about 1 MiB, that of a stream as it arrives.

    Replaces invalid bytes by U+FFFD and counts them in `report`; with on_invalid="stop", raises DataError with their
    byte offset. Raises DataError for a binary, damaged or unreadable file, and with an `encoding`, a codec of Python,
    for bytes that are not valid in it.
    """
    decoder, used, fed, text = None, encoding or "", 0, ""
    for data in _read_bytes(path, report, CHUNK):
        if decoder is None and encoding:
            on_invalid = "stop"
            decoder = codecs.getincrementaldecoder(encoding)()
        elif decoder is None:
            found, fed = _encoding(data)
            if found is None:
                raise DataError(
                    f"{path}: a binary file (it holds NUL bytes). Convert it to text first, or name its encoding if "
                    f"it is text: {report.option}=utf-16-le, for example"
                )
            used, data = found, data[fed:]
            decoder = codecs.getincrementaldecoder(used)()
        text = _decode(decoder, used, data, False, path, fed, on_invalid, report)
        # A named encoding such as utf-8 leaves the mark in the text.
        yield text.removeprefix("\ufeff") if encoding and not fed else text
        fed += len(data)
    if decoder is not None:
        yield _decode(decoder, used, b"", True, path, fed, on_invalid, report)


def is_binary(path: Path) -> bool:
    """Return whether the first 64 KiB (decompressed) are not text. Raises DataError when they cannot be read."""
    return _encoding(next(_read_bytes(path, ReadReport(), SNIFF), b""))[0] is None


def head(path: Path | InputStream, encoding: str | None = None) -> str:
    """Return the first 64 KiB of a file, or what has arrived of a stream, as text with invalid bytes replaced."""
    data = path.peek() if isinstance(path, InputStream) else next(_read_bytes(path, ReadReport(), SNIFF), b"")
    mark = 0
    if encoding is None:
        encoding, mark = _encoding(data)
    return codecs.getincrementaldecoder(encoding or "latin-1")("replace").decode(data[mark:])


def iter_lines(chunks: Iterable[str], newline: str) -> Iterator[str]:
    """Yield lines with their line ends; newline="\\n" splits only there, newline="" at "\\r" and "\\r\\n" too."""
    held: list[str] = []
    for chunk in chunks:
        if newline == "" and held and held[-1].endswith("\r"):  # may be the first half of "\r\n"
            chunk = held.pop() + chunk
        lines = io.StringIO(chunk, newline=newline)
        for line in lines:
            if line.endswith("\n") or (newline == "" and line.endswith("\r") and lines.tell() < len(chunk)):
                # Pop it, so that no second reference keeps a long line alive while the caller uses it.
                held = ["".join([*held, line])] if held else [line]
                yield held.pop()
            else:
                held.append(line)
        if len(held) == 32:
            held = ["".join(held)]  # the allocator would keep hundreds of freed 1 MiB strings
    if held:
        held = ["".join(held)]
        yield held.pop()


def _encoding(data: bytes) -> tuple[str | None, int]:
    """Return (encoding, length of the byte order mark) from the first bytes of a file; (None, 0) if it is binary."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    if b"\0" not in data[:SNIFF]:
        return "utf-8", 0
    # UTF-16 without a mark: Latin letters, spaces and line ends have a NUL in every other byte, always the high one.
    even, odd = data[:4096:2], data[1:4096:2]
    for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if 0 not in others and zeros.count(0) > 0.01 * len(zeros):
            sample = codecs.getincrementaldecoder(encoding)("replace").decode(data[:4096])
            if all(char.isprintable() or char.isspace() for char in sample):
                return encoding, 0
    return None, 0


def _decode(
    decoder: Any,
    encoding: str,
    data: bytes,
    final: bool,
    path: Path | InputStream,
    fed: int,
    on_invalid: str,
    report: ReadReport,
) -> str:
    """Decode `data`, the bytes of `path` from offset `fed`, together with the bytes that the decoder still holds."""
    held = decoder.getstate()[0]
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        if on_invalid == "stop":
            raise DataError(
                f"{path}: invalid {encoding} at byte {fed - len(held) + error.start:,} ({error.reason}); "
                "convert the file, name its encoding, or set on_invalid=replace"
            ) from None
    decoder.errors = "replace"
    text = decoder.decode(data, final)
    decoder.errors = "strict"
    whole = held + data
    whole = whole[: len(whole) - len(decoder.getstate()[0])]
    # Do not count U+FFFD characters of the file itself; every other one replaces one to three invalid bytes.
    inserted = text.count("\ufffd") - whole.decode(encoding, "ignore").count("\ufffd")
    report.replace(str(path), len(whole) - len(text.encode(encoding)) + inserted * len("\ufffd".encode(encoding)))
    return text


@contextmanager
def _open(path: Path) -> Iterator[tuple[io.BufferedIOBase, io.BufferedReader]]:
    """Yield (decompressed stream, raw file); read errors of both become DataError."""
    damaged: list[type[Exception]] = [EOFError, zlib.error, lzma.LZMAError]
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as raw:
            if suffix in (".gz", ".bz2", ".xz"):
                stream: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix](raw)
            elif suffix == ".zst":
                import zstandard

                damaged.append(zstandard.ZstdError)
                stream = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
            else:
                stream = raw
            yield stream, raw
    except OSError as error:
        # gzip and bz2 report damage as an OSError without errno.
        cause = "cannot be read" if error.errno else f"damaged or truncated {suffix} file"
        raise DataError(f"{path}: {cause}: {error.strerror or error}") from None
    except tuple(damaged) as error:
        raise DataError(f"{path}: damaged or truncated {suffix} file: {error}; copy or download it again") from None


def _read_bytes(path: Path | InputStream, report: ReadReport, size: int) -> Iterator[bytes]:
    """Yield decompressed bytes in chunks; add the bytes read from the file itself to `report.raw_bytes`."""
    if isinstance(path, InputStream):
        yield from _stream_bytes(path, report, size)
        return
    with _open(path) as (stream, raw):
        before = 0
        while data := stream.read(size):
            report.raw_bytes += raw.tell() - before
            before = raw.tell()
            yield data


def _stream_bytes(stream: InputStream, report: ReadReport, size: int) -> Iterator[bytes]:
    try:
        data = stream.read(size)
        # The encoding is told by up to four bytes, which may arrive one by one; a whole line is enough.
        while len(data) < 4 and b"\n" not in data and (more := stream.read(size)):
            data += more
        while data:
            report.raw_bytes += len(data)
            yield data
            data = stream.read(size)
    except OSError as error:
        raise DataError(f"{stream}: cannot be read: {error.strerror or error}") from None
