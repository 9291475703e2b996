"""The built-in corpus: the source files of the running Python's standard library, which every machine has."""

import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from mini_llm.engine.errors import DataError

# Installed packages are not part of the standard library. Its tests, 60 % of the bytes, are mostly data and repetition.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def iter_stdlib_files() -> Iterator[tuple[str, str]]:
    """Yield (path relative to the library, text) of each source file, sorted by path, decoded as in PEP 263.

    Python 3.11 has about 730 files and 12 MB. Raises DataError when there are none.
    """
    library = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    if not paths:
        raise DataError(f"{library}: this Python has no standard library sources; name your own text with --data")
    for path in sorted(paths, key=lambda path: path.relative_to(library).as_posix()):
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # Python itself rejects the encoding
        yield path.relative_to(library).as_posix(), text
