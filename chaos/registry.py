"""Registry of faults. Each fault is a function with a number, a title and the expected behaviour.

    @fault(13, "one bit flipped in every file", "error names the file, previous checkpoint used")
    def flipped_bits(lab: Lab) -> Seen:
        folder = lab.folder("flip")           # a new working directory
        ...
        if something_differs:
            raise Differs("model.safetensors differs after ...")
        return Seen("12 files, all detected", lost_steps=2)

A function raises Differs if the project does not behave as expected, and NotHere if the fault cannot be tested on this
machine. Any other exception counts as Differs. MODULES in chaos/__main__.py lists the modules that contain faults.
"""

from collections.abc import Callable
from dataclasses import dataclass


class Differs(Exception):
    """The project did not behave as expected."""


class NotHere(Exception):
    """The fault cannot be tested on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Seen:
    """Observed behaviour. `lost_steps`: the most steps that were computed again, None if not measured."""

    what: str
    lost_steps: int | None = None


@dataclass(frozen=True)
class Fault:
    """`number` is that of the table in docs/reliability.md; B1 to B5 are broken savers, which must be caught."""

    number: int | str
    title: str
    expected: str
    run: Callable[..., Seen]


@dataclass(frozen=True)
class Outcome:
    """Result of a launch: exit code (negative: the signal that killed it), output, seconds, number of file events."""

    code: int
    text: str
    seconds: float
    events: int


FAULTS: list[Fault] = []


def fault(number: int | str, title: str, expected: str) -> Callable[[Callable[..., Seen]], Callable[..., Seen]]:
    """Decorator that adds a function to the campaign."""

    def enter(function: Callable[..., Seen]) -> Callable[..., Seen]:
        FAULTS.append(Fault(number, title, expected, function))
        return function

    return enter


def check(condition: object, otherwise: str) -> None:
    """Raise Differs(otherwise) if `condition` is false."""
    if not condition:
        raise Differs(otherwise)


def expect(outcome: Outcome, code: int, *parts: str) -> None:
    """Raise Differs unless the launch ended with `code`, printed all `parts` and no traceback."""
    check(outcome.code == code, f"exit code {outcome.code}, expected {code}: {outcome.text[-600:]}")
    for part in parts:
        check(part in outcome.text, f"the output lacks '{part}': {outcome.text[-600:]}")
    check("Traceback" not in outcome.text and "internal error" not in outcome.text, outcome.text[-600:])
