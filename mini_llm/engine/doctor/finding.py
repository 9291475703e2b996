"""What a check of the doctor says."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, its state, what was found, and the command that mends it ("" if it is ok)."""

    name: str
    state: State
    text: str
    fix: str = ""


def ok(name: str, text: str) -> Finding:
    return Finding(name, "ok", text)


def warning(name: str, text: str, fix: str) -> Finding:
    """Everything works, but slower or with less comfort."""
    return Finding(name, "warning", text, fix)


def problem(name: str, text: str, fix: str) -> Finding:
    """Some command will fail."""
    return Finding(name, "problem", text, fix)
