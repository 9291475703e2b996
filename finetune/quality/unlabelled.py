"""Read unlabelled texts, and leave out those that will be scored."""

import hashlib
import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mini_llm.corpus.config import SourceConfig
from mini_llm.corpus.encoding import suggest_encoding
from mini_llm.corpus.paths import find_files, is_hub_name, saved_dataset, table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.sources import read_source
from mini_llm.corpus.tables import iter_file_rows, iter_rows
from mini_llm.corpus.text import iter_lines, read_text
from mini_llm.engine.errors import DataError

from ..data_config import DataConfig
from ..examples import Splits
from .duplicates import ACROSS_CHARACTERS, ACROSS_TEXTS
from .near import NearIndex
from .normal_form import normal_form

LIMIT = 50_000
# Characters that the texts may have in all, which is what memory and the later steps have to hold.
MOST_CHARACTERS = 200_000_000
# Longer documents of a pretraining corpus are books or files of code: no text to classify.
LONGEST_DOCUMENT = 50_000


def read_unlabelled(config: DataConfig, splits: Splits, limit: int = LIMIT) -> list[str]:
    """Return at most `limit` different texts of the sources `data.unlabelled`, in the order of the sources.

    Leaves out texts that stand, exactly or nearly, in the validation or test data of `splits`, and counts them in
    `splits.notes` and `splits.findings`. Of more texts, draws a sample that depends on data.seed and the texts. Reads
    everything, but holds the sample only. Raises DataError for a source that cannot be read or holds no texts.
    """
    sources = [(source, iter_unlabelled(source, config)) for source in config.unlabelled]
    return collect_unlabelled(sources, config, splits, limit)


def read_pretraining_texts(
    sources: list[SourceConfig], config: DataConfig, splits: Splits, characters: float
) -> list[str]:
    """Return the first documents of a pretraining corpus, up to `characters` in all, as read_unlabelled does."""

    def documents() -> Iterator[str]:
        read = 0
        for source in sources:
            for _, chunks in read_source(source, "replace", ReadReport()):
                text = ""
                for chunk in chunks:
                    text += chunk
                    if len(text) > LONGEST_DOCUMENT:
                        break
                read += len(text)
                if read > characters:
                    return
                if len(text) <= LONGEST_DOCUMENT:
                    yield text

    return collect_unlabelled([("the pretraining corpus", documents())], config, splits, LIMIT, may_be_empty=True)


def collect_unlabelled(
    sources: Iterable[tuple[str, Iterator[str]]],
    config: DataConfig,
    splits: Splits,
    limit: int,
    may_be_empty: bool = False,
) -> list[str]:
    """Return at most `limit` texts of `sources`, (name, texts) each; see read_unlabelled."""
    scored = {normal_form(example.text) for part in (splits.validation, splits.test or []) for example in part}
    seen: set[bytes] = set()
    chosen: list[tuple[int, int, str]] = []  # a heap: (-rank, position, text); the largest rank is replaced first
    read = exact = 0
    damaged = ""
    for source, found in sources:
        before = read
        for text in found:
            read += 1
            damaged = damaged or (source if "\ufffd" in text else "")
            normal = normal_form(text)
            if normal in scored:
                exact += 1
                continue
            digest = hashlib.blake2b(
                f"{config.seed}\0{normal}".encode("utf-8", "surrogatepass"), digest_size=8
            ).digest()
            if not normal or digest in seen:
                continue
            seen.add(digest)
            item = (-int.from_bytes(digest, "big"), read, text)
            if len(chosen) < limit:
                heapq.heappush(chosen, item)
            elif item > chosen[0]:
                heapq.heapreplace(chosen, item)
        if read == before and not may_be_empty:
            raise DataError(f"{source}: no texts. data.unlabelled reads tables with a column '{config.text}' and files")
    texts = [text for _, _, text in sorted(chosen, key=lambda item: item[1])]
    kept = _without_near(texts, scored, config)
    counts = {"read": read, "different": len(seen), "equal_to_scored": exact, "near_to_scored": len(texts) - len(kept)}
    kept = _within(kept, MOST_CHARACTERS)
    splits.findings["unlabelled"] = counts | {"used": len(kept)}
    note = "unlabelled, from the pretraining corpus" if may_be_empty else "unlabelled"
    note += f": {len(kept):,} of {read:,} texts used ({len(seen):,} different"
    if exact or counts["near_to_scored"]:
        note += f"; left out: {exact:,} equal and {counts['near_to_scored']:,} nearly equal to validation or test texts"
    if read:
        splits.notes.append(note + ")")
    if damaged:
        splits.notes.append(
            f"unlabelled: texts of {damaged} hold U+FFFD, the sign for bytes that cannot be decoded. "
            f"{suggest_encoding(damaged, 'data.encoding')}"
        )
    return kept


def iter_unlabelled(source: str, config: DataConfig) -> Iterator[str]:
    """Yield the texts of one source: the text column of tables and datasets, or of text files.

    A text file named alone holds one text per line; in a folder or glob each file is one text.
    """
    if is_hub_name(source) or saved_dataset(source):
        yield from (str(row[config.text]) for row in iter_rows(source, None, [config.text]) if row[config.text])
        return
    alone = Path(os.path.expanduser(source)).is_file()
    for path in find_files(source):
        if table_format(path) is not None:
            rows = iter_file_rows(path, [config.text], "replace", ReadReport(), encoding=config.encoding)
            yield from (str(row[config.text]) for row in rows if row[config.text])
            continue
        chunks = read_text(path, "replace", ReadReport(), config.encoding)
        yield from (line.rstrip("\r\n") for line in iter_lines(chunks, newline="\n")) if alone else ["".join(chunks)]


def _without_near(texts: list[str], scored: set[str], config: DataConfig) -> list[str]:
    auto = len(texts) <= ACROSS_TEXTS and sum(map(len, texts)) <= ACROSS_CHARACTERS
    if not (auto if config.near_duplicates == "auto" else config.near_duplicates):
        return texts
    index = NearIndex()
    for key, normal in enumerate(sorted(scored)):
        index.search(normal, key)
    return [text for text in texts if not index.search(normal_form(text))]


def _within(texts: list[str], characters: int) -> list[str]:
    """Drop evenly spaced texts until at most about `characters` are left."""
    total = sum(map(len, texts))
    if total <= characters:
        return texts
    keep = max(1, int(len(texts) * characters / total))
    return [texts[i * len(texts) // keep] for i in range(keep)]
