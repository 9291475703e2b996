"""Turn sources into the distinct documents of the training or validation part, each of bounded size.

report = ReadReport()
for text in iter_documents(CorpusConfig(sources="input.txt"), "train", report): ...
print(report)
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Literal, NamedTuple

from mini_llm.corpus.config import STDLIB, CorpusConfig, SourceConfig
from mini_llm.corpus.hash_set import HashSet
from mini_llm.corpus.paths import is_hub_name, named_splits
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
    """A distinct text, its part and its origin. `digest` is the hash of the text, salted with the corpus seed."""

    part: str
    text: str
    digest: bytes
    origin: Origin


def iter_documents(
    config: CorpusConfig, part: Literal["train", "validation", "all"] = "train", report: ReadReport | None = None
) -> Iterator[str]:
    """Yield the texts of a part, always in the same order, training texts as often as their source's weight asks.

    A document above 4 MiB of UTF-8 is split, after a line end if possible, else before white space. No text is in both
    parts. Raises DataError for unreadable sources and for an empty part.
    """
    report = ReadReport() if report is None else report
    found, split = False, resolve_split(config)
    for document in iter_parts(config, split, report):
        if part != "all" and document.part != part:
            if split == "given" and part == "validation":
                break  # the validation sources come first
            continue
        found = True
        report.documents += 1
        report.bytes += len(document.text.encode())
        yield document.text
    if not found:
        raise no_text(config, "training" if part == "all" else part, report)


def iter_parts(config: CorpusConfig, split: Split, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of both parts in one pass, repeating or dropping training documents by weight."""
    config, seen = with_named_splits(config, report), {"train": HashSet(), "validation": HashSet()}
    # Validation sources come first, so that their texts can be dropped from the training documents.
    plan = [("validation", i, source) for i, source in enumerate(config.validation)]
    plan += [("train", i, source) for i, source in enumerate(config.sources)]
    for part, index, source in plan:
        report.option = f"corpus.{'sources' if part == 'train' else part}.{index}.encoding"
        documents = _documents(config, source, part, split, report)
        if config.deduplicate or split != "hash":  # a split by hash puts equal texts in the same part anyway
            documents = _distinct(documents, seen, config.deduplicate, report)
        if part == "train" and source.weight != 1:
            documents = _weighted(documents, source, report)
        yield from documents


def with_named_splits(config: CorpusConfig, report: ReadReport | None = None) -> CorpusConfig:
    """Replace each folder that holds train.* and validation.* or test.* files by those files of its part.

    Validation files become `config.validation`, unless that is given; test files and others are not read.
    """
    sources: list[SourceConfig] = []
    held_out: list[SourceConfig] = []
    for source in config.sources:
        parts = None if source.path == STDLIB or is_hub_name(source.path) else named_splits(source.path)
        if parts is None:
            sources.append(source)
            continue
        sources += [source.model_copy(update={"path": str(file)}) for file in parts["train"]]
        if not config.validation:
            files = parts.get("validation", [])
            held_out += [source.model_copy(update={"path": str(file), "weight": 1.0}) for file in files]
        if report is not None:
            names = {part: ", ".join(file.name for file in files[:5]) for part, files in parts.items()}
            read = {part: names.pop(part) for part in ("train", "validation") if part in names}
            shown = "; ".join(f"{part}: {files}" for part, files in read.items())
            rest = f"; not read: {', '.join(names.values())}" if names else ""
            report.note(f"{source.path}: files taken by name: {shown}{rest}")
    return config.model_copy(update={"sources": sources, "validation": config.validation or held_out})


def resolve_split(config: CorpusConfig) -> Split:
    """Resolve split="auto": "tail" below 20 documents or when no document hashes to validation, else "hash".

    Reads no further than needed to decide.
    """
    config = with_named_splits(config)
    if config.validation:
        return "given"
    if config.split != "auto":
        return config.split
    seen, documents, validation = HashSet(), 0, False
    for source in config.sources:
        for _, chunks in read_source(source, config.on_invalid, ReadReport(), config.separator):
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
    """Split a document into parts of at most 4 MiB of UTF-8; the result does not depend on the sizes of `chunks`.

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
    """Return the error for an empty part: what was read, and what to do."""
    config = with_named_splits(config)
    sources = config.validation if part == "validation" and config.validation else config.sources
    names = ", ".join(source.path for source in sources)
    advice = "Check that the files hold text, and that 'text' names the right column"
    if part == "validation" and not config.validation:
        advice = "Give more text, raise validation_fraction, use split=tail, or name validation sources"
    return DataError(f"{names}: no {part} text found ({report}). {advice}")


def _documents(
    config: CorpusConfig, source: SourceConfig, part: str, split: Split, report: ReadReport
) -> Iterator[Document]:
    """Yield every document of a source, split to size, with its part."""
    for origin, chunks in read_source(source, config.on_invalid, report, config.separator):
        groups = _tail(chunks, config) if split == "tail" else [(part, chunks)]
        count = 0
        for name, group in groups:
            for data in cut(group):
                text = data.decode()
                if text.isspace():
                    continue
                count += 1
                digest = _digest(data, config.seed)
                by_hash = "validation" if split == "hash" and _in_validation(digest, config) else name
                yield Document(by_hash, text, digest, origin)
        report.empty += count == 0
        report.cut += count > (2 if split == "tail" else 1)


def _tail(chunks: Iterable[str], config: CorpusConfig) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield (part, chunks): the first characters of a document go to training, the last to validation."""
    if isinstance(chunks, TextFile):
        length = sum(len(chunk) for chunk in replace(chunks, report=ReadReport()))
    else:
        length = sum(len(chunk) for chunk in chunks)
    # int(length * 0.9) is where nanoGPT cuts tinyshakespeare.
    train = int(length * (1 - (config.validation_fraction or TAIL_FRACTION)))
    if config.validation_fraction is None:
        train = max(train, length - TAIL_CHARACTERS)
    for part, group in groupby(_marked(chunks, train), key=itemgetter(0)):
        yield part, (chunk for _, chunk in group)


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
    """Drop texts already seen in the other part (always) or in the same part (when deduplicating)."""
    for document in documents:
        other = "train" if document.part == "validation" else "validation"
        if document.digest in seen[other]:
            report.overlap += 1
        elif not seen[document.part].add(document.digest) and deduplicate:
            report.duplicates += 1
        else:
            yield document


def _weighted(documents: Iterable[Document], source: SourceConfig, report: ReadReport) -> Iterator[Document]:
    """Yield each document floor(weight) times, plus once more for the fractional share of them, chosen by hash.

    Repeats follow about 16 MB later if the source is that long, so that no context window holds a text twice.
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
            f"{source.path}: weight {source.weight} drops all {total:,} training documents, since it keeps or drops "
            "each one whole; raise the weight or split the files"
        )


def _slices(chunks: Iterable[str]) -> Iterator[str]:
    """Re-slice the text into chunks of at most 1 Mi characters: a table row can hold hundreds of Mi at once."""
    for chunk in chunks:
        for start in range(0, len(chunk), 1 << 20):
            yield chunk[start : start + (1 << 20)]


def _in_validation(digest: bytes, config: CorpusConfig) -> bool:
    return _unit(digest[:8]) < (config.validation_fraction or HASH_FRACTION)


def _unit(data: bytes) -> float:
    """Map eight bytes of a hash to a number in [0, 1)."""
    return int.from_bytes(data, "little") / 2**64


def _digest(data: bytes, seed: int) -> bytes:
    return hashlib.blake2b(data, digest_size=16, salt=seed.to_bytes(8, "little")).digest()


def _boundary(data: bytes) -> int:
    """Return where to split, at most MAX_DOCUMENT_BYTES in: after a newline, else before a space or tab."""
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
