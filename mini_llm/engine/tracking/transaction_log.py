"""Read and write the files *.wandb in which W&B keeps a run until it is sent.

A file is a header of 7 bytes and a log in LevelDB's format (leveldb/doc/log_format.md) with plain CRC32 checksums.
Blocks of 32 KiB hold chunks, each with a checksum, a length, a type and data. A record, in one chunk or several, is a
message `Record` of wandb/proto/wandb_internal.proto.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mini_llm.engine.run.files import write_atomic

HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK, CHUNK_HEADER = 32 * 1024, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Any]:
    """The records of a file up to the first incomplete or damaged one: a kill may have torn the last.

    Raises ValueError if `path` is no such file.
    """
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    for data in unpack(path.read_bytes(), str(path)):
        record = messages.Record()
        record.ParseFromString(data)
        yield record


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Write records to a file, numbered from 0."""
    messages = []
    for number, record in enumerate(records):
        record.num = number
        messages.append(record.SerializeToString())
    write_atomic(path, pack(messages))


def unpack(content: bytes, name: str = "") -> Iterator[bytes]:
    """The messages of a log, up to the first incomplete or damaged one. Raises ValueError for another header."""
    if content[: len(HEADER)] != HEADER:
        raise ValueError(f"{name}: not a transaction log of W&B")
    at, parts = len(HEADER), b""
    while True:
        if BLOCK - at % BLOCK < CHUNK_HEADER.size:  # a block ends with zeros where no header fits
            at += BLOCK - at % BLOCK
        if at + CHUNK_HEADER.size > len(content):
            return
        checksum, length, kind = CHUNK_HEADER.unpack_from(content, at)
        data = content[at + CHUNK_HEADER.size : at + CHUNK_HEADER.size + length]
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != checksum:
            return
        at += CHUNK_HEADER.size + length
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            yield parts


def pack(messages: Iterable[bytes]) -> bytes:
    """The log of these messages."""
    log = bytearray(HEADER)
    for message in messages:
        rest, first = message, True
        while first or rest:
            room = BLOCK - len(log) % BLOCK
            if room < CHUNK_HEADER.size:
                log += bytes(room)
                room = BLOCK
            data, rest = rest[: room - CHUNK_HEADER.size], rest[room - CHUNK_HEADER.size :]
            kind = {(True, True): FULL, (True, False): FIRST, (False, True): LAST}.get((first, not rest), MIDDLE)
            log += CHUNK_HEADER.pack(zlib.crc32(bytes([kind]) + data), len(data), kind) + data
            first = False
    return bytes(log)
