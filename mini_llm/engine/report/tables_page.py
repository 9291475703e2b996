"""One self-contained HTML page of sentences, pictures and tables, for results that are not those of one run."""

import re
from collections.abc import Sequence
from pathlib import Path

from mini_llm.engine.report.page import page_template
from mini_llm.engine.run.files import write_atomic

# A number, also with a unit or an interval behind it; or nothing.
NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?\w?( |$)|$")
# The light colors of templates/style.css, for a picture without a page.
_STYLE = (
    "svg { --ink: #1b1b1a; --muted: #63625d; --grid: #dddcd7; --series-1: #2a6fdb; --series-2: #d9541e; "
    "--series-3: #1f8a5b; --series-4: #8a4fc4; background: #ffffff; } text { font-family: system-ui, sans-serif; }"
)


def write_tables_page(
    path: Path,
    title: str,
    lines: Sequence[str],
    pictures: Sequence[tuple[str, str]],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
) -> None:
    """Write the page. pictures: (title, <svg>); tables: (title, columns, rows). Text is escaped. Raises OSError."""
    shown = [(name, columns, rows, _numeric(columns, rows)) for name, columns, rows in tables]
    page = page_template("tables.html.jinja").render(title=title, lines=lines, pictures=pictures, tables=shown)
    write_atomic(path, page)


def _numeric(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers, or nothing, in all rows."""
    return [all(NUMBER.match(row[index]) for row in rows) for index in range(len(columns))]


def standalone(svg: str) -> str:
    """A picture of charts.py as a file of its own: with namespaces, and colors in place of the page's variables."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return re.sub(r"^<svg([^>]*)>", rf"<svg {spaces}\1><style>{_STYLE}</style>", svg, count=1)
