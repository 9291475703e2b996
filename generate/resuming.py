"""`--file FILE --output OUT`: the texts go to a file, and the same command continues it after a kill."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mini_llm.engine.run.partial import PartialOutput, State, model_hash

from .output import Printer, note


class Row(NamedTuple):
    """A row of the input, from 1; a blank one has no prompt."""

    number: int
    prompt: str | None


def answer_file(
    printer: Printer, prompts: Sequence[str | None], source: str, output: Path, model: Path, options: str
) -> None:
    """Write the JSON lines of all prompts to `output`, after those that an earlier launch has written.

    Rows are complete, in order and not repeated after any number of kills. `options`: all settings that the texts
    depend on. Raises ConfigError, DataError.
    """
    rows = [Row(number, prompt) for number, prompt in enumerate(prompts, start=1)]
    name = source if source == "-" else str(Path(source).resolve())
    key = {"model": model_hash(model), "input": name, "options": options}
    with PartialOutput(output.resolve() if output.is_symlink() else output, key, State) as partial:
        done = len(rows) - len(list(partial.skip_done(iter(rows), source)))
        if done:
            note(f"{partial.partial}: continues after row {done:,}")
        printer.out = partial.file
        printer.answer_all(prompts, numbered=True, skip=done, row_done=lambda row: partial.commit([rows[row - 1]]))
    note(f"{output}: {len(rows):,} rows")
