"""Documents inside one text file: what separates them, and files that look as if they held several."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.text import head, iter_lines

LINE, BLANK_LINE = "line", "blank-line"
# Marks that other projects put between documents: GPT-2, Llama 3, Qwen; Llama 2; BERT.
MARKS = re.compile(r"<\|endoftext\|>|<\|end_of_text\|>|<\|im_end\|>|</s>|\[SEP\]|<eos>|<EOS>")
# A text file with as many parts in its first 64 KiB probably holds several documents.
MANY = 20


def split_documents(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """Yield the documents of a text, without the line ends around them; empty ones are left out.

    separator: "line", "blank-line", or the text between documents, in which \\n stands for a line end.
    """
    if separator == LINE:
        parts: Iterable[str] = iter_lines(chunks, newline="")
    elif separator == BLANK_LINE:
        parts = _paragraphs(chunks)
    else:
        parts = _parts(chunks, separator.replace("\\n", "\n").replace("\\t", "\t"))
    for part in parts:
        text = part.strip("\r\n")
        if text and not text.isspace():
            yield text


def _paragraphs(chunks: Iterable[str]) -> Iterator[str]:
    lines: list[str] = []
    for line in iter_lines(chunks, newline=""):
        if not line.isspace():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    yield "".join(lines)


def _parts(chunks: Iterable[str], separator: str) -> Iterator[str]:
    buffer = ""
    for chunk in chunks:
        # Search only what is new, with the end of what may be half a separator.
        start = max(0, len(buffer) - len(separator) + 1)
        buffer += chunk
        while (end := buffer.find(separator, start)) >= 0:
            yield buffer[:end]
            buffer, start = buffer[end + len(separator) :], 0
    yield buffer


def notice_separator(path: Path, encoding: str | None, alone: bool, report: ReadReport) -> None:
    """Add a remark to `report` if a text file, read as one document, is full of something that separates documents.

    Blank lines and lines are looked for in files that are named alone, with the suffix .txt or none.
    """
    text = head(path, encoding)
    found = MARKS.findall(text)
    if len(found) > 1:
        mark = max(set(found), key=found.count)
        _remark(path, f"{found.count(mark):,} times '{mark}'", mark, report)
        return
    if not alone or path.suffix.lower() not in ("", ".txt", ".text"):
        return
    lines = text.splitlines()
    paragraphs = len(re.findall(r"\S[^\S\n]*\r?\n\s*\n", text))
    if paragraphs >= MANY:
        _remark(path, f"{paragraphs:,} blank lines", BLANK_LINE, report)
    elif len(lines) >= MANY and not paragraphs:
        _remark(path, f"{len(lines):,} lines without a blank one", LINE, report)


def _remark(path: Path, what: str, separator: str, report: ReadReport) -> None:
    value = f"'{separator}'" if re.search(r"[^\w-]", separator) else separator
    report.note(
        f"{path} is read as one document, but its beginning holds {what}: if those end documents, set "
        f"corpus.separator={value}"
    )
