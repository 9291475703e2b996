"""Read the documents of a file, folder, glob or dataset, whole."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from mini_llm.corpus.config import SourceConfig
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.sources import read_source
from mini_llm.corpus.tables import column_settings
from mini_llm.engine.config import build_config
from mini_llm.engine.errors import DataError


class Document(NamedTuple):
    """A text and where it comes from."""

    text: str
    origin: str


def iter_texts(path: str, column: str = "text") -> Iterator[Document]:
    """Yield the documents of `path` that are not blank. A text file is one document, a row of a table is one."""
    source = build_config(SourceConfig, {"path": path, "text": column}, path)
    with column_settings({column: "--text COLUMN"}):
        for origin, chunks in read_source(source, "replace", ReadReport()):
            text = "".join(chunks)
            if text.strip():
                yield Document(text, str(origin))


def read_texts(path: str, column: str = "text", most: int | None = None) -> list[Document]:
    """Return the first `most` documents of `path`. Raises DataError if there is none."""
    documents = list(islice(iter_texts(path, column), most))
    if not documents:
        raise DataError(f"{path}: no text in it. Check the file, or name the column that holds the text: --text COLUMN")
    return documents
