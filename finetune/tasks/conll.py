"""Read CoNLL files: one word per line with its tag in the last column, and a blank line after each sentence."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.text import iter_lines, read_text
from mini_llm.engine.errors import DataError

DOCUMENT = "-DOCSTART-"
_COMMENT = re.compile(r"#\s*[\w.]+\s*=")  # of CoNLL-U: "# text = ..."; a word "#" has other columns


def iter_sentences(
    path: Path, word_column: str, tag_column: str, report: ReadReport, encoding: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ('train.conll line 7', {word_column: words, tag_column: tags}) for every sentence.

    The first column is the word, the last the tag; white space separates columns. Lines of -DOCSTART- and comments of
    CoNLL-U are skipped. Raises DataError for a line with a word but no tag.
    """
    words: list[str] = []
    tags: list[str] = []
    start = 0
    for number, line in enumerate(iter_lines(read_text(path, "replace", report, encoding), newline="\n"), 1):
        columns = line.split("\t") if "\t" in line else line.split()
        columns = [column.strip() for column in columns]
        if not any(columns):
            if words:
                yield f"{path} line {start}", {word_column: words, tag_column: tags}
            words, tags = [], []
            continue
        if columns[0] == DOCUMENT or (not words and _COMMENT.match(line)):
            continue
        if len(columns) < 2 or not columns[0] or not columns[-1]:
            raise DataError(
                f"{path}: line {number}: {line.strip()[:60]!a} has no tag. Each line needs a word and, in its last "
                "column, a tag, such as 'Paris B-LOC'; a blank line ends a sentence"
            )
        start = start if words else number
        words.append(columns[0])
        tags.append(columns[-1])
    if words:
        yield f"{path} line {start}", {word_column: words, tag_column: tags}
