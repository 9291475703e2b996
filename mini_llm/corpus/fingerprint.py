"""One hash over the content of a corpus. Modification times are ignored: they do not prove that a file is unchanged."""

import hashlib
import json
from collections.abc import Iterator

from mini_llm.corpus.config import STDLIB, TEXT_SETTING, CorpusConfig, SourceConfig
from mini_llm.corpus.documents import MAX_DOCUMENT_BYTES, with_named_splits
from mini_llm.corpus.hub import hub_commit
from mini_llm.corpus.paths import is_hub_name, plain_suffixes, saved_dataset
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.sources import readable_files
from mini_llm.corpus.stdlib import iter_stdlib_files
from mini_llm.corpus.tables import column_settings, iter_rows
from mini_llm.engine.run.files import sha256

VERSION = 1  # raise it when the way documents are made from sources changes


def corpus_fingerprint(config: CorpusConfig) -> str:
    """Return a SHA-256 that changes when a source's content, its order, or the way it is read and split changes.

    Hashes whole files, at about 1.5 GB/s; a streamed Hugging Face dataset is represented by its commit. Raises
    DataError.
    """
    config = with_named_splits(config)
    settings = config.model_dump(mode="json", exclude={"sources", "validation"})
    if config.separator is None:
        del settings["separator"]  # as in earlier releases
    total = hashlib.sha256(json.dumps([VERSION, MAX_DOCUMENT_BYTES, settings], sort_keys=True).encode())
    for part, sources in (("validation", config.validation), ("train", config.sources)):
        for source in sources:
            # Corpora of earlier releases, which had no encoding, keep their hash.
            own = [part, source.text, source.split, source.weight, *filter(None, [source.encoding])]
            total.update(json.dumps(own).encode())
            for digest in _digests(source, config.on_invalid):
                total.update(digest)
    return total.hexdigest()


def source_bytes(config: CorpusConfig) -> int | None:
    """Return the size on disk of all source files in bytes, or None if some source is not a set of files."""
    size, config = 0, with_named_splits(config)
    for source in (*config.sources, *config.validation):
        if source.path == STDLIB or is_hub_name(source.path) or saved_dataset(source.path):
            return None
        size += sum(path.stat().st_size for path in readable_files(source, ReadReport()))
    return size


def _digests(source: SourceConfig, on_invalid: str) -> Iterator[bytes]:
    if source.path == STDLIB:
        for name, text in iter_stdlib_files():
            yield hashlib.sha256(f"{name}\0{text}".encode()).digest()
    elif is_hub_name(source.path) and source.streaming:
        yield hub_commit(source.path).encode()
    elif is_hub_name(source.path) or saved_dataset(source.path):
        with column_settings({source.text: TEXT_SETTING}):
            for row in iter_rows(source.path, source.split, [source.text], False, on_invalid):
                yield hashlib.sha256(repr(row[source.text]).encode()).digest()
    else:
        for path in readable_files(source, ReadReport()):
            # The suffixes decide how the file is read; the rest of its name does not matter.
            yield f"{plain_suffixes(path.name)}{sha256(path)}".encode()
