"""The faults of the campaign: one function each, with a number, a title and what is expected.

    @fault(13, "one bit flipped in every file", "the checkpoint before it is taken, the file is named")
    def flipped_bits(lab: Lab) -> Seen:
        folder = lab.folder("flip")           # a directory of its own
        ...
        if something_differs:
            raise Differs("model.safetensors differs after ...")
        return Seen("12 files, 12 found", lost_steps=2)

A function raises Differs when the project did not do what is expected, and NotHere when this machine cannot try it.
Any other exception counts as Differs. Modules that hold faults are listed in chaos/__main__.py.
"""

from collections.abc import Callable
from dataclasses import dataclass


class Differs(Exception):
    """The project did not do what is expected."""


class NotHere(Exception):
    """This machine cannot try the fault; the message says what is missing."""


@dataclass(frozen=True)
class Seen:
    """What was seen. lost_steps: the most steps that had to be computed again; None where there is no such number."""

    what: str
    lost_steps: int | None = None


@dataclass(frozen=True)
class Fault:
    """`number`: of the table in docs/reliability.md; "B1" and so on are broken savers, which must be caught."""

    number: int | str
    title: str
    expected: str
    run: Callable[..., Seen]


@dataclass(frozen=True)
class Outcome:
    """How a launch ended: exit code (negative: killed by that signal), what it printed, seconds, file events."""

    code: int
    text: str
    seconds: float
    events: int


FAULTS: list[Fault] = []


def fault(number: int | str, title: str, expected: str) -> Callable[[Callable[..., Seen]], Callable[..., Seen]]:
    """Enter a function into the campaign."""

    def enter(function: Callable[..., Seen]) -> Callable[..., Seen]:
        FAULTS.append(Fault(number, title, expected, function))
        return function

    return enter


def check(condition: object, otherwise: str) -> None:
    """Raise Differs(otherwise) unless `condition` holds."""
    if not condition:
        raise Differs(otherwise)


def expect(outcome: Outcome, code: int, *parts: str) -> None:
    """Differs unless a launch ended with `code`, said all `parts`, and showed no traceback."""
    check(outcome.code == code, f"exit code {outcome.code}, expected {code}: {outcome.text[-600:]}")
    for part in parts:
        check(part in outcome.text, f"'{part}' was not said: {outcome.text[-600:]}")
    check("Traceback" not in outcome.text and "internal error" not in outcome.text, outcome.text[-600:])
