"""Guess the encoding of a file whose bytes are not valid UTF-8."""

import codecs
from pathlib import Path

CHUNK = 1 << 20  # bytes
READ = 1 << 17  # bytes from which the encoding is guessed


def guess_encoding(file: str) -> str:
    """Return advice for a file whose text holds U+FFFD: the encoding to set, guessed by charset-normalizer."""
    path = Path(file)
    if not path.is_file() or path.suffix in (".gz", ".zst", ".bz2", ".xz", ".parquet"):
        return "Repair the source, or name its encoding with data.encoding=NAME"
    data = _invalid_part(path)
    if data is None:
        return "The file itself is valid UTF-8, so the damage is older: restore the text from its origin"
    from charset_normalizer import from_bytes

    best = from_bytes(data).best()
    if best is None:
        return "Name the encoding of the file: data.encoding=cp1252, for example"
    return f"The file looks like {best.encoding}: set data.encoding={best.encoding}"


def _invalid_part(path: Path) -> bytes | None:
    """Return bytes around the first ones that are not valid UTF-8, or None if all are valid."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as opened:
        while data := opened.read(CHUNK):
            try:
                decoder.decode(data)
            except UnicodeDecodeError as error:
                start = max(0, min(error.start, len(data)) - READ // 2)
                return data[start : start + READ]
    return None
