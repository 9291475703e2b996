"""Files that hold the state of a run: each is validated where it is read, and set aside when it is damaged.

A disk fault, an editor or another program may have left anything in them. No reader may trust their types.
"""

import json
import math
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from mini_llm.engine.run.files import open_regular

T = TypeVar("T")
SUFFIX = ".damaged"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_state(path: Path | str, kind: type[T], aside: bool = False) -> T | None:
    """The content of a JSON file as `kind`, any type that pydantic validates; None if the file is missing or damaged.

    A damaged file is named on standard error. With `aside`, which only the process that owns the run may pass, it is
    renamed too, so that a new one can be written.
    """
    return _read(Path(path), kind, aside)[1]


def read_object(path: Path | str, kind: type[BaseModel], aside: bool = False) -> dict[str, Any]:
    """Like read_state, but returns the JSON object as it is in the file, once `kind` accepts it; {} without one."""
    content, found = _read(Path(path), kind, aside)
    return content if found is not None else {}


def _read(path: Path, kind: type[T], aside: bool) -> tuple[Any, T | None]:
    try:
        with open_regular(path) as file:
            content = parse_json(file.read())
        return content, TypeAdapter(kind).validate_python(content)
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        reason = describe(error)
    say(f"{path}: damaged ({reason}); {set_aside(path) if aside else 'it is left out'}")
    return None, None


def parse_json(text: bytes | str) -> Any:
    """Parse strict JSON. Raises ValueError, also for what no reader could use: infinite numbers, integers of more than
    64 bits and deep nesting. Halves of surrogate pairs, which cannot be written, become U+FFFD."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        tree = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return _mend_text(tree) if "\\u" in text else tree


def describe(error: Exception) -> str:
    """The first problem of a ValidationError with its place, or the message of another error, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        # Only keys and indices of the file; pydantic adds the names of the types it tried.
        place = ".".join(str(part) for part in first["loc"][:3])
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def set_aside(path: Path) -> str:
    """Rename a damaged file so that a new one can take its place; returns what was done, for a message."""
    target = path.with_name(path.name + SUFFIX)
    for number in range(2, 1000):
        if not os.path.lexists(target):
            break
        target = path.with_name(f"{path.name}{SUFFIX}-{number}")
    try:
        os.rename(path, target)
    except OSError as error:
        return f"it cannot be renamed either ({error.strerror or error})"
    return f"renamed to {target.name}"


@cache
def say(message: str) -> None:
    """Print one line to standard error; the same line only once."""
    print(message, file=sys.stderr, flush=True)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"{digits[:20]}... is too large an integer")
    return int(digits)


def _mend_text(tree: Any) -> Any:
    if isinstance(tree, str):
        return _LONE_SURROGATE.sub("\ufffd", tree)
    if isinstance(tree, list):
        return [_mend_text(item) for item in tree]
    if isinstance(tree, dict):
        return {_mend_text(key): _mend_text(value) for key, value in tree.items()}
    return tree


# What the files hold. The fields that readers use are validated; other ones may be anything.
Scalar = bool | int | FiniteFloat | str | None


class Record(BaseModel):
    """Base: fields that are not listed are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True)


class Finished(Record):
    """finished.json."""

    finished: str = ""
    seconds: FiniteFloat | None = None
    scores: dict[str, Any]


class Environment(Record):
    """environment.json."""

    stage: str | None = None
    cpu: str | None = None
    commit: str | None = None
    gpus: list[str] | None = None


class Summary(Record):
    """summary.json. `scores`: one row per model, the run's own first."""

    job_type: str = ""
    objective: str | None = None
    train_seconds: FiniteFloat | None = None
    parameters: FiniteFloat | None = None
    vocab_size: NonNegativeInt | None = None
    corpus_fingerprint: str | None = None
    scores: list[dict[str, Scalar]] | None = None


class StoredSchedule(BaseModel):
    """The state of a learning-rate schedule."""

    total: PositiveInt
    warmup: NonNegativeInt
    knots: list[tuple[int, FiniteFloat]] = Field(min_length=2)


class StoredPlan(BaseModel):
    """plan.json: (step, schedule from there on) in `history`."""

    schedule: StoredSchedule
    evaluate_every: PositiveInt
    save_every: PositiveInt
    next_review: PositiveInt
    evaluation_share: FiniteFloat | None = Field(None, gt=0, le=1)
    history: list[tuple[NonNegativeInt, StoredSchedule]] = []


class Table(Record):
    """tables/NAME.json. Rows and columns get empty cells until all have the same length."""

    columns: list[str] = Field(min_length=1)
    rows: list[list[Any]]

    def model_post_init(self, _: Any) -> None:
        width = max(len(self.columns), *map(len, self.rows), 0)
        self.columns = [*self.columns, *[""] * (width - len(self.columns))]
        self.rows = [[*row, *[None] * (width - len(row))] for row in self.rows]


class Counts(Table):
    """tables/confusion.json: counts of the predicted labels, one row per true label."""

    def model_post_init(self, _: Any) -> None:
        counts = [count for row in self.rows for count in row]
        square = {len(row) for row in self.rows} == {len(self.columns)} == {len(self.rows)}
        if not square or not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("not a square table of counts")


class Tokens(Table):
    """tables/pieces.json: rows of token, id and kind."""

    def model_post_init(self, _: Any) -> None:
        if [row for row in self.rows if [type(cell) for cell in row] != [str, int, str]]:
            raise ValueError("not rows of token, id and kind")
