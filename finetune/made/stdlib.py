"""The built-in task: which standard-library package does this function come from?

An example is one function or method of the running Python's standard library; its label is the package of its file.
To make the code itself the evidence, the text is stripped of:

- the names of all packages that are labels, in any case and anywhere (`asyncio.sleep` -> `_.sleep`,
  `XMLParser` -> `_Parser`), in every example alike, so that a hole reveals nothing;
- the names of the function's own module and of the folders above it, as whole words in any case;
- import statements;
- docstrings: they describe the package in English, which would turn the task into keyword spotting, and they fill the
  first tokens, which are all that a small model sees of a long function.

The split is by file, because functions of one file share names and idioms, which would leak the label. The task is
deterministic for one Python version. Models pretrained on the built-in corpus have seen these files, but no labels.
"""

import ast
import hashlib
import random
import re
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import accumulate
from pathlib import PurePosixPath
from typing import NamedTuple

from mini_llm.corpus.stdlib import iter_stdlib_files
from mini_llm.engine.errors import DataError

from ..examples import Example, Splits

DESCRIPTION = (
    "Which standard-library package does this function come from? Functions and methods of the running Python, "
    "split by file; the names of the packages and of the function's module, imports and docstrings are removed. "
    "A model pretrained on the built-in corpus has also read these files, without the labels."
)

MINIMUM_LINES = 3
MAXIMUM_PER_CLASS = 600
# A class needs this many functions, and one file with at least MINIMUM_PER_FILE of them for each split.
MINIMUM_PER_CLASS = 60
MINIMUM_FILES = 3
MINIMUM_PER_FILE = 8
MINIMUM_CLASSES = 10
SPLIT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
# Removing a shorter package name, such as `re`, would destroy the text.
MINIMUM_NAME_LENGTH = 3
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
TEST_FOLDERS = {"test", "tests", "idle_test"}
HOLE = "_"


class Function(NamedTuple):
    text: str
    package: str
    path: str
    line: int


def load_stdlib_task(seed: int = 0, files: Iterable[tuple[str, str]] | None = None) -> Splits:
    """Build the task from `files`, pairs of relative path and source text (default: those of the running Python).

    Raises DataError if fewer than 10 packages have enough functions and files, as in a stripped installation.
    """
    functions = [
        f for path, text in (iter_stdlib_files() if files is None else files) for f in read_functions(path, text)
    ]
    packages = choose_packages(functions)
    if len(packages) < MINIMUM_CLASSES:
        raise DataError(
            f"The built-in task needs {MINIMUM_CLASSES} standard-library packages with source files, found "
            f"{len(packages)} ({', '.join(packages) or 'none'}). Install Python's full standard library, or use "
            "your own labelled data: data.path=FILE"
        )
    functions = drop_duplicates(mask_names(f, packages) for f in functions if f.package in packages)
    parts: dict[str, list[Example]] = {part: [] for part in SPLIT_SHARES}
    for label, package in enumerate(packages):
        own = sorted((f for f in functions if f.package == package), key=lambda f: digest(seed, f.path, f.text))
        own = sorted(own[:MAXIMUM_PER_CLASS], key=lambda f: (f.path, f.line))
        part_of = split_files(Counter(f.path for f in own), f"{seed}/{package}")
        for f in own:
            parts[part_of[f.path]].append(Example(f.text, label, f"{f.path}:{f.line}", group=f.path))
    return Splits(packages, parts["train"], parts["validation"], parts["test"], description=DESCRIPTION)


def read_functions(path: str, source: str) -> list[Function]:
    """Return the functions and methods of one file, without docstrings and imports; nested functions stay nested."""
    parts = PurePosixPath(path).parts
    if len(parts) < 2 or TEST_FOLDERS.intersection(parts) or parts[-1].startswith("test_"):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    content = source.encode()
    # Byte offset of each line; ast counts lines from 1 and columns in bytes.
    starts = [0, *accumulate(len(line) for line in content.splitlines(keepends=True))]
    found = []
    for node in outer_functions(tree):
        text = textwrap.dedent(function_text(content, starts, node)).strip()
        if len(text.splitlines()) >= MINIMUM_LINES:
            found.append(Function(text, parts[0], path, node.lineno))
    return found


def outer_functions(tree: ast.AST) -> Iterable[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
        else:
            yield from outer_functions(node)


def function_text(content: bytes, starts: list[int], node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the source of `node` without docstrings (nested ones too) and with `pass` instead of imports."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    cuts = []
    for inner in ast.walk(node):
        if isinstance(inner, (ast.Import, ast.ImportFrom)):
            cuts.append((inner, b"pass"))
        elif isinstance(inner, DEFINITIONS) and ast.get_docstring(inner, clean=False) is not None:
            cuts.append((inner.body[0], b"" if len(inner.body) > 1 else b"pass"))
    text, position = b"", starts[first - 1]
    for cut, replacement in sorted(cuts, key=lambda pair: (pair[0].lineno, pair[0].col_offset)):
        text += content[position : starts[cut.lineno - 1] + cut.col_offset] + replacement
        position = _end(starts, cut)
    text += content[position : _end(starts, node)]
    return "\n".join(line for line in text.decode().splitlines() if line.strip())


def _end(starts: list[int], node: ast.stmt) -> int:
    """The offset of the first byte after `node`, from the offsets of all lines."""
    assert node.end_lineno is not None and node.end_col_offset is not None, "ast.parse sets both"
    return starts[node.end_lineno - 1] + node.end_col_offset


def choose_packages(functions: list[Function]) -> list[str]:
    """Return the packages with enough functions in enough files, sorted by name."""
    per_file: dict[str, Counter[str]] = defaultdict(Counter)
    for f in drop_duplicates(functions):
        per_file[f.package][f.path] += 1
    return sorted(
        package
        for package, counts in per_file.items()
        if len(package.strip("_")) >= MINIMUM_NAME_LENGTH
        and sum(counts.values()) >= MINIMUM_PER_CLASS
        and sum(count >= MINIMUM_PER_FILE for count in counts.values()) >= MINIMUM_FILES
    )


def mask_names(function: Function, packages: list[str]) -> Function:
    """Remove the names of all `packages` and of the function's own module from its text."""
    names = sorted((package.strip("_") for package in packages), key=len, reverse=True)
    modules = [part.removesuffix(".py") for part in PurePosixPath(function.path).parts[1:]]
    modules = [re.escape(name) for name in modules if name != "__init__"]
    text = re.sub("|".join(map(re.escape, names)), HOLE, function.text, flags=re.IGNORECASE)
    if modules:
        text = re.sub(rf"(?<!\w)({'|'.join(modules)})(?!\w)", HOLE, text, flags=re.IGNORECASE)
    return function._replace(text=text)


def drop_duplicates(functions: Iterable[Function]) -> list[Function]:
    """Keep the first of equal texts (up to white space), or none if they occur in several packages."""
    groups: dict[str, list[Function]] = defaultdict(list)
    for f in functions:
        groups[" ".join(f.text.split())].append(f)
    return [group[0] for group in groups.values() if len({f.package for f in group}) == 1]


def split_files(counts: dict[str, int], seed: str, trials: int = 300) -> dict[str, str]:
    """Assign each file to a split: take the best of `trials` seeded assignments, by distance to SPLIT_SHARES."""
    generator = random.Random(seed)
    total = sum(counts.values())
    parts, shares = list(SPLIT_SHARES), list(SPLIT_SHARES.values())
    # Require as many examples per split as possible; the third largest file limits it.
    floor = min(MINIMUM_PER_FILE, sorted(counts.values())[-len(parts)])
    best, best_distance = {}, float("inf")
    for _ in range(trials):
        drawn = dict(zip(sorted(counts), generator.choices(parts, shares, k=len(counts)), strict=True))
        got: Counter[str] = Counter()
        for path, part in drawn.items():
            got[part] += counts[path]
        distance = sum(abs(got[part] / total - share) / share for part, share in SPLIT_SHARES.items())
        if min(got[part] for part in parts) >= floor and distance < best_distance:
            best, best_distance = drawn, distance
    return best


def digest(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
