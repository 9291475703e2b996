"""The task of texts without labels: which file, or which half of the only file, is this passage from?

Texts are cut into passages of about 400 characters. With several files, the labels are the names of the largest ones,
without those that have few passages; with one file, its first and its second half. Blocks of adjacent passages stay on
one side of the validation split, since they share names and topics.
"""

from collections.abc import Iterator
from pathlib import Path

from mini_llm.corpus.paths import find_files, is_hub_name, saved_dataset, table_format
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.text import is_binary, iter_lines, read_text
from mini_llm.engine.errors import DataError

from ..data_config import BUILT_IN, DataConfig
from ..examples import Example, Splits

CHARACTERS, FEWEST_CHARACTERS = 400, 100  # of a passage, about; fewer for short texts
WANTED = 200  # passages of a short text
BLOCK = 5  # adjacent passages that are kept together
FEWEST = 20  # passages of a label
MOST_FILES = 10
MOST_PASSAGES = 600  # of a label


def is_plain_text(config: DataConfig) -> bool:
    """Return whether the training data are text files, which hold no labels."""
    if config.path == BUILT_IN or is_hub_name(config.path) or saved_dataset(config.path):
        return False
    return not any(table_format(path) for path in find_files(config.path))


def load_passages(config: DataConfig) -> Splits:
    """Make the task from the text files at config.path. Raises DataError for a text that is too short."""
    report = ReadReport(option="data.encoding")
    found = find_files(config.path)
    paths = [path for path in found if config.encoding or not is_binary(path)]
    if not paths:
        raise DataError(f"{found[0]}: a binary file, neither a table nor text. Save it as CSV, JSONL, Parquet or text")
    size = sum(path.stat().st_size for path in paths)
    length = min(CHARACTERS, max(FEWEST_CHARACTERS, size // WANTED))
    passages = {path: list(_passages(path, length, config, report)) for path in paths}
    several = sorted((path for path in passages if len(passages[path]) >= FEWEST), key=lambda p: -len(passages[p]))
    several = sorted(several[:MOST_FILES])
    if len(several) > 1:
        parts = {_name(path, several): (path, passages[path]) for path in several}
        question = f"which of {len(several)} files is this passage from?"
    else:
        path = max(passages, key=lambda p: len(passages[p]), default=Path(config.path))
        own = passages.get(path, [])
        if len(own) < 2 * FEWEST:
            raise DataError(
                f"{config.path}: text without labels, from which a task is made of passages of {length} characters, "
                f"needs {2 * FEWEST} of them and has {len(own)}. Give more text, or a table with labels"
            )
        half = len(own) // 2
        parts = {"first half": (path, own[:half]), "second half": (path, own[half:])}
        question = f"is this passage from the first or the second half of {path.name}?"
    examples = [
        Example(text, label, f"{path} passage {number + 1}", group=f"{label}/{number // BLOCK}")
        for label, (path, texts) in enumerate(parts.values())
        for number, text in enumerate(texts[:MOST_PASSAGES])
    ]
    notes = []
    if report.replaced_bytes:
        notes.append(f"{report.replaced_bytes:,} invalid bytes replaced by U+FFFD. {report.advice()}")
    return Splits(list(parts), examples, [], None, f"Made from the text itself, which has no labels: {question}", notes)


def _passages(path: Path, length: int, config: DataConfig, report: ReadReport) -> Iterator[str]:
    """Yield whole lines of about `length` characters together; longer lines are cut at spaces."""
    held = ""
    for line in iter_lines(read_text(path, "replace", report, config.encoding), newline=""):
        held += line
        while len(held) >= length:
            end = len(held) if len(held) < 2 * length else held.rfind(" ", 1, length) + 1 or length
            yield held[:end].strip()
            held = held[end:]
    if len(held.strip()) >= length // 2:
        yield held.strip()


def _name(path: Path, paths: list[Path]) -> str:
    """The stem of a file, or its path where stems are equal."""
    return path.stem if sum(other.stem == path.stem for other in paths) == 1 else str(path)
