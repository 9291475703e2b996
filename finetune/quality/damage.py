"""Labels and texts that are damaged: bytes that could not be decoded, control characters, texts in place of labels."""

import unicodedata
from collections.abc import Sequence

from mini_llm.corpus.encoding import suggest_encoding
from mini_llm.engine.errors import DataError

REPLACEMENT = "\ufffd"
ENCODING = "data.encoding"
LONGEST_LABEL = 500  # characters
SHOWN = 60  # characters of a label in a message


def check_label(label: str, place: str, file: str) -> None:
    """Raise DataError for a label at `place` of `file` that is no name of a class: it would be a class of its own."""
    shown = ascii(label if len(label) <= SHOWN else label[:SHOWN] + "...")
    if REPLACEMENT in label:
        raise DataError(
            f"{place}: the label {shown} holds U+FFFD, the sign for bytes that cannot be decoded. "
            f"{suggest_encoding(file, ENCODING)}"
        )
    if len(label) > LONGEST_LABEL:
        raise DataError(
            f"{place}: the label {shown} has {len(label):,} characters, as a text has and not a class. Name the column "
            "that holds the label: data.label=COLUMN"
        )
    control = next((char for char in label if unicodedata.category(char) == "Cc"), None)
    if control is not None:
        raise DataError(
            f"{place}: the label {shown} holds the control character U+{ord(control):04X}. Remove it, or name the "
            "column that holds the label: data.label=COLUMN"
        )


def damaged_texts(damaged: Sequence[tuple[str, str]]) -> list[str]:
    """Return the note on texts with U+FFFD; `damaged`: (file, place) of each."""
    if not damaged:
        return []
    file, place = damaged[0]
    return [
        f"{len(damaged):,} texts hold U+FFFD, the sign for bytes that cannot be decoded, such as {place}. "
        f"{suggest_encoding(file, ENCODING)}"
    ]
