"""Write errors.html into a run: self-contained, and readable on a phone."""

from pathlib import Path

from mini_llm.engine.report.page import page_template
from mini_llm.engine.run.files import write_atomic

from .mistakes import Errors, Word

TEMPLATES = Path(__file__).parent / "templates"
TOP_WORDS = 5
TEXT = 600  # characters of a text whose label is suspect


def write_errors(run: Path, errors: Errors) -> Path:
    """Write the page and return its path."""
    page = page_template("errors.html.jinja", TEMPLATES).render(
        name=run.resolve().name, errors=errors, shade=shade, strongest=strongest, most=TEXT
    )
    write_atomic(run / "errors.html", page)
    return run / "errors.html"


def shade(word: Word) -> int:
    """The strength of a word's color in percent, 0 for words that hardly matter."""
    return round(60 * abs(word.share)) if abs(word.share) >= 0.05 else 0


def strongest(words: list[Word], sign: int) -> list[Word]:
    """The words that speak most for the prediction (sign 1) or for the label (-1)."""
    chosen = [word for word in words if sign * word.share >= 0.05 and word.text.strip()]
    return sorted(chosen, key=lambda word: -sign * word.score)[:TOP_WORDS]
