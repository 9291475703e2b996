"""Read SQuAD's JSON (versions 1.1 and 2.0): articles, paragraphs, questions, answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.text import read_text
from mini_llm.engine.errors import DataError


def iter_questions(
    path: Path,
    context_column: str,
    question_column: str | None,
    answers_column: str,
    report: ReadReport,
    encoding: str | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ('dev.json question 56be4db0', {context, question, answers}) for every question. Raises DataError."""
    try:
        tree = json.loads("".join(read_text(path, "replace", report, encoding)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from None
    for place, context, question in _questions(path, tree):
        answers = [] if question.get("is_impossible") else question.get("answers")
        yield (
            place,
            {
                context_column: context,
                question_column or "question": question.get("question"),
                answers_column: answers,
            },
        )


def _questions(path: Path, tree: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    articles = tree.get("data") if isinstance(tree, dict) else None
    for number, article in enumerate(_list(articles, f"{path}: 'data'"), 1):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        for index, paragraph in enumerate(_list(paragraphs, f"{path}: 'paragraphs' of article {number}"), 1):
            where = f"{path}: 'qas' of article {number}, paragraph {index}"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            for question in _list(questions, where):
                if not isinstance(question, dict):
                    raise DataError(f"{where}: expected an object, found {str(question)[:40]!r}")
                yield f"{path} question {question.get('id')}", paragraph.get("context"), question


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where} is not a list. SQuAD's format is data, paragraphs, qas, answers")
    return value
