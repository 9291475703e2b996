"""Values of a row's columns as texts, numbers and lists. Errors name the file and the row."""

import json
import math
from typing import Any

from mini_llm.engine.errors import DataError

from ..data_config import DataConfig
from ..quality.labels import label_name


def text_of(values: dict[str, Any], column: str, place: str) -> str | None:
    """Return the text in `column`, or None for null, NaN and white space. Raises DataError for other types."""
    value = values.get(column)
    if isinstance(value, (list, dict, bytes)):
        raise DataError(f"{place}: '{column}' holds a {type(value).__name__}, not text or a number")
    text = None if value is None or value != value else str(value)
    return text if text is not None and text.strip() else None


def group_of(values: dict[str, Any], config: DataConfig) -> str:
    """Return the group of a row, "" without one."""
    group = values.get(config.group) if config.group else None
    return "" if group is None else str(group)


def label_set(value: Any, separator: str, place: str) -> list[str] | None:
    """Return the labels of a row: a list, a JSON list in text, or names between `separator`; None for null.

    Raises DataError for null among the labels and for nested lists.
    """
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{place}: {value[:60]!a} is not a JSON list of labels ({error})") from None
    elif isinstance(value, str):
        value = [part for part in value.split(separator) if part.strip()] or None
    elif value is not None and not isinstance(value, (list, tuple)):
        value = None if value != value else [value]
    if value is None:
        return None
    names = [label_name(part, place) for part in value]
    if None in names:
        raise DataError(f"{place}: one of the labels {value} is null or empty. Remove it: [] means no label")
    return list(dict.fromkeys(name for name in names if name is not None))


def number_of(value: Any, place: str) -> float | None:
    """Return a finite number, or None for null and NaN. Raises DataError for other values, true and false too."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.inf
        if math.isfinite(number):
            return number
    raise DataError(
        f"{place}: {str(value)[:60]!a} is not a finite number such as 3.5. For classes: task=single_label or ordinal"
    )


def string_list(value: Any, place: str) -> list[str] | None:
    """Return a list of strings, or None for null and an empty list. Raises DataError for other values."""
    if value is None or value != value or value == "":
        return None
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"{place} holds {str(value)[:60]!a}, not a list of words. Tables that hold lists are JSONL and Parquet; a "
            "CoNLL file has a word and its tag on each line"
        )
    for index, part in enumerate(value):
        if not isinstance(part, str) or not part.strip():
            raise DataError(f"{place}: element {index} is {str(part)[:60]!a}, not a word")
    return list(value) or None
