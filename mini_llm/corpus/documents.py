"""Sources -> the distinct documents of the training or the validation part, each of bounded size.

report = ReadReport()
for text in iter_documents(CorpusConfig(sources="input.txt"), "train", report): ...
print(report)
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Literal, NamedTuple

from mini_llm.corpus.config import CorpusConfig, SourceConfig
from mini_llm.corpus.hash_set import HashSet
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.sources import Origin, TextFile, read_source
from mini_llm.engine.errors import DataError

MAX_DOCUMENT_BYTES = 4 << 20
HASH_FRACTION = 0.02
TAIL_FRACTION = 0.1
TAIL_CHARACTERS = 4 << 20
FEW_DOCUMENTS = 20
REPEAT_CHARACTERS = 16 << 20

Split = Literal["given", "hash", "tail"]


class Document(NamedTuple):
    """A distinct text, its part and its origin; the digest is of the text, salted with the corpus seed."""

    part: str
    text: str
    digest: bytes
    origin: Origin


def iter_documents(
    config: CorpusConfig, part: Literal["train", "validation", "all"] = "train", report: ReadReport | None = None
) -> Iterator[str]:
    """Texts of a part, always in the same order; training texts as often as their source's weight says.

    A document above 4 MiB of UTF-8 comes as several, cut after a line end, else before white space. No text is in both
    parts. Raises DataError for unreadable sources, and when the part holds nothing.
    """
    report = ReadReport() if report is None else report
    found = False
    for document in iter_parts(config, resolve_split(config), report):
        if part != "all" and document.part != part:
            if config.validation and part == "validation":
                break  # the validation sources come first
            continue
        found = True
        report.documents += 1
        report.bytes += len(document.text.encode())
        yield document.text
    if not found:
        raise no_text(config, "training" if part == "all" else part, report)


def iter_parts(config: CorpusConfig, split: Split, report: ReadReport) -> Iterator[Document]:
    """Documents of both parts in one pass; training documents repeated or left out by weight."""
    seen = {"train": HashSet(), "validation": HashSet()}
    # Given validation sources come first: what they hold is then known when the training documents pass.
    plan = [("validation", source) for source in config.validation] + [("train", source) for source in config.sources]
    for part, source in plan:
        documents = _documents(config, source, part, split, report)
        if config.deduplicate or split != "hash":  # by hash, the same text is in the same part anyway
            documents = _distinct(documents, seen, config.deduplicate, report)
        if part == "train" and source.weight != 1:
            documents = _weighted(documents, source, report)
        yield from documents


def resolve_split(config: CorpusConfig) -> Split:
    """What split="auto" means here: "tail" below 20 documents or when no hash falls to validation, else "hash".

    Reads only as far as it takes to know.
    """
    if config.validation:
        return "given"
    if config.split != "auto":
        return config.split
    seen, documents, validation = HashSet(), 0, False
    for source in config.sources:
        for _, chunks in read_source(source, config.on_invalid, ReadReport()):
            new = False
            for data in cut(chunks):
                digest = _digest(data, config.seed)
                if seen.add(digest) and not data.isspace():
                    new = True
                    validation = validation or _in_validation(digest, config)
            documents += new
            if documents >= FEW_DOCUMENTS and validation:
                return "hash"
    return "tail"


def cut(chunks: Iterable[str]) -> Iterator[bytes]:
    """The UTF-8 text of a document in parts of at most 4 MiB, the same ones however it was read.

    A part ends after the last newline in its second half, else before the last space or tab, else between characters.
    """
    buffer = b""
    for chunk in _slices(chunks):
        buffer += chunk.encode()
        while len(buffer) > MAX_DOCUMENT_BYTES:
            end = _boundary(buffer)
            yield buffer[:end]
            buffer = buffer[end:]
    if buffer:
        yield buffer


def no_text(config: CorpusConfig, part: str, report: ReadReport) -> DataError:
    """The error for a part that holds nothing, with what was read and what to do."""
    sources = config.validation if part == "validation" and config.validation else config.sources
    names = ", ".join(source.path for source in sources)
    advice = "Check that the files hold text, and that 'text' names its column"
    if part == "validation" and not config.validation:
        advice = "Give more text, a larger validation_fraction, split=tail, or validation sources"
    return DataError(f"{names}: no {part} text found ({report}). {advice}")


def _documents(
    config: CorpusConfig, source: SourceConfig, part: str, split: Split, report: ReadReport
) -> Iterator[Document]:
    """Every document of a source, cut to size, with its part."""
    for origin, chunks in read_source(source, config.on_invalid, report):
        groups = _tail(chunks, config) if split == "tail" else [(part, chunks)]
        pieces = 0
        for name, group in groups:
            for data in cut(group):
                text = data.decode()
                if text.isspace():
                    continue
                pieces += 1
                digest = _digest(data, config.seed)
                by_hash = "validation" if split == "hash" and _in_validation(digest, config) else name
                yield Document(by_hash, text, digest, origin)
        report.empty += pieces == 0
        report.cut += pieces > (2 if split == "tail" else 1)


def _tail(chunks: Iterable[str], config: CorpusConfig) -> Iterator[tuple[str, Iterable[str]]]:
    """(part, pieces): the first characters of a document are for training, the last for validation."""
    if isinstance(chunks, TextFile):
        length = sum(len(chunk) for chunk in TextFile(chunks.path, chunks.on_invalid, ReadReport()))
    else:
        length = sum(len(chunk) for chunk in chunks)
    # int(length * 0.9) is where nanoGPT cuts tinyshakespeare.
    train = int(length * (1 - (config.validation_fraction or TAIL_FRACTION)))
    if config.validation_fraction is None:
        train = max(train, length - TAIL_CHARACTERS)
    for part, group in groupby(_marked(chunks, train), key=itemgetter(0)):
        yield part, (piece for _, piece in group)


def _marked(chunks: Iterable[str], train: int) -> Iterator[tuple[str, str]]:
    for chunk in _slices(chunks):
        if train > 0:
            yield "train", chunk[:train]
        if train < len(chunk):
            yield "validation", chunk[max(train, 0) :]
        train -= len(chunk)


def _distinct(
    documents: Iterable[Document], seen: dict[str, HashSet], deduplicate: bool, report: ReadReport
) -> Iterator[Document]:
    """Drop a text that is in the other part (always), or was in this one before (when de-duplicating)."""
    for document in documents:
        other = "train" if document.part == "validation" else "validation"
        if document.digest in seen[other]:
            report.overlap += 1
        elif not seen[document.part].add(document.digest) and deduplicate:
            report.duplicates += 1
        else:
            yield document


def _weighted(documents: Iterable[Document], source: SourceConfig, report: ReadReport) -> Iterator[Document]:
    """Each document floor(weight) times, and once more for a share of them chosen by hash.

    Repeats follow about 16 MB later, where the source is that long, so that no context window holds a text twice.
    """
    waiting: list[list[Document]] = []  # the n-th repeats
    size, total, kept = 0, 0, 0
    whole, share = divmod(source.weight, 1)
    for document in documents:
        if document.part == "validation":
            yield document
            continue
        total += 1
        copies = int(whole) + (_unit(document.digest[8:]) < share)
        if not copies:
            report.unchosen += 1
            continue
        kept += 1
        yield document
        if copies > 1:
            waiting += [[] for _ in range(copies - 1 - len(waiting))]
            for repeats in waiting[: copies - 1]:
                repeats.append(document)
            size += len(document.text)
        if size > REPEAT_CHARACTERS:
            for repeats in waiting:
                yield from repeats
            waiting, size = [], 0
    for repeats in waiting:
        yield from repeats
    if total and not kept:
        raise DataError(
            f"{source.path}: weight {source.weight} leaves none of its {total:,} training documents "
            "(each is taken or left whole); raise the weight or split the files"
        )


def _slices(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of at most 1 Mi characters: a row may hold hundreds, too many to copy often."""
    for chunk in chunks:
        for start in range(0, len(chunk), 1 << 20):
            yield chunk[start : start + (1 << 20)]


def _in_validation(digest: bytes, config: CorpusConfig) -> bool:
    return _unit(digest[:8]) < (config.validation_fraction or HASH_FRACTION)


def _unit(data: bytes) -> float:
    """Eight bytes of a hash as a number in [0, 1)."""
    return int.from_bytes(data, "little") / 2**64


def _digest(data: bytes, seed: int) -> bytes:
    return hashlib.blake2b(data, digest_size=16, salt=seed.to_bytes(8, "little")).digest()


def _boundary(data: bytes) -> int:
    """Where to cut: at most MAX_DOCUMENT_BYTES, by preference after a newline, then before a space or tab."""
    half = MAX_DOCUMENT_BYTES // 2
    newline = data.rfind(b"\n", half, MAX_DOCUMENT_BYTES)
    if newline >= 0:
        return newline + 1
    space = max(data.rfind(b" ", half, MAX_DOCUMENT_BYTES), data.rfind(b"\t", half, MAX_DOCUMENT_BYTES))
    if space >= 0:
        return space
    end = MAX_DOCUMENT_BYTES
    while data[end] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        end -= 1
    return end
