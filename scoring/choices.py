"""Multiple choice by likelihood, as EleutherAI's lm-eval computes it, from any JSONL of questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import iter_file_rows
from mini_llm.engine.errors import ConfigError, DataError

from .decoder import prefix_id
from .likelihood import score_windows
from .subject import Subject
from .tally import ends_of
from .windows import Window

SHOTS = 3
COLUMNS = ["question", "choices", "answer"]


@dataclass(frozen=True)
class Question:
    """A question with its choices; `answer` is the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int
    origin: str


@dataclass(frozen=True)
class Answers:
    """What a model answered. log_likelihoods: of each choice of each question, in nats.

    correct, correct_normalized (N,): whether the likeliest choice is right, as it is and per character.
    """

    log_likelihoods: list[np.ndarray]
    correct: np.ndarray
    correct_normalized: np.ndarray


def read_questions(path: Path, most: int | None = None) -> list[Question]:
    """Read questions from a JSONL, JSON or Parquet file. `answer` is an index from 0, or the text of a choice.

    Raises DataError naming the row.
    """
    found = []
    for number, row in enumerate(iter_file_rows(path, COLUMNS, "replace", ReadReport(), nested=True), start=1):
        place = f"{path} row {number:,}"
        choices = row["choices"]
        if not isinstance(row["question"], str):
            raise DataError(f"{place}: 'question' is {row['question']!r}; it must be a text")
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
            raise DataError(f"{place}: 'choices' must be a list of two or more texts")
        answer = row["answer"]
        if isinstance(answer, str) and choices.count(answer) == 1:
            answer = choices.index(answer)
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise DataError(
                f"{place}: 'answer' is {row['answer']!r}; it must be the text of one choice, or its number from 0 to "
                f"{len(choices) - 1}"
            )
        found.append(Question(row["question"], tuple(choices), answer, place))
        if len(found) == most:
            break
    if not found:
        raise DataError(f"{path}: no questions. A row has the columns question, choices and answer")
    return found


def read_shots(file: Path | None, count: int | None, questions: Path) -> list[Question]:
    """Return the first `count` (default: SHOTS) solved questions of `file`. Raises ConfigError for a count without a
    file, and for the file of the questions themselves."""
    if file is None:
        if count is not None:
            raise ConfigError(f"--shots {count}: name the file with solved questions: --shots-file FILE")
        return []
    if file.exists() and questions.exists() and file.samefile(questions):
        raise ConfigError(f"--shots-file {file} is the file of the questions: their answers would be given away")
    return read_questions(file, count or SHOTS)


def make_prompts(questions: Sequence[Question], template: str, shots: Sequence[Question]) -> list[str]:
    """Return the text before the choices of each question: solved examples, separated by blank lines, then the question
    in `template`. Raises ConfigError for a template without {question}."""
    if "{question}" not in template:
        raise ConfigError(f"--template {template!r}: it must contain {{question}}, where the question goes")

    def show(question: Question) -> str:
        return template.replace("{question}", question.question)

    solved = "".join(f"{show(shot)} {shot.choices[shot.answer]}\n\n" for shot in shots)
    return [solved + show(question) for question in questions]


def encode_choice(subject: Subject, prompt: str, choice: str) -> Window:
    """Return the ids of a prompt and " choice" as a window, cut at its start to the context.

    Spaces at the end of the prompt belong to the choice. The choice is what the whole text has after the ids of the
    prompt alone, so that tokens are those of the whole text.
    """
    tokenizer = subject.tokenizer
    bare = prompt.rstrip()
    text = prompt[len(bare) :] + " " + choice
    if bare:
        before, _ = subject.frame
        whole, start = [*before, *tokenizer.encode(bare + text)], len(before) + len(tokenizer.encode(bare))
    else:
        whole, start = [prefix_id(subject), *tokenizer.encode(text)], 1
    if start == 0:  # nothing to condition the first token on
        whole, start = [prefix_id(subject), *whole], 1
    scored = whole[start:]
    inputs = whole[-(subject.context + 1) :][:-1]
    return Window(inputs, scored[-len(inputs) :])


def answer(subject: Subject, questions: Sequence[Question], prompts: Sequence[str], batch_tokens: int) -> Answers:
    """Return the likelihood of every choice. Raises NonFiniteError."""
    windows = [
        encode_choice(subject, prompt, choice)
        for question, prompt in zip(questions, prompts, strict=True)
        for choice in question.choices
    ]
    sums = iter([s.log_probability.sum() for s in score_windows(subject.model, windows, batch_tokens)])  # ty: ignore[invalid-argument-type]
    found = [np.array([next(sums) for _ in question.choices]) for question in questions]
    lengths = [np.array([len(choice) for choice in question.choices]) for question in questions]
    right = np.array([question.answer for question in questions])
    plain = np.array([values.argmax() for values in found])
    normalized = np.array([(values / length).argmax() for values, length in zip(found, lengths, strict=True)])
    return Answers(found, plain == right, normalized == right)


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def score_choices(
    subject: Subject, file: Path, template: str, shots: Sequence[Question], most: int | None, batch_tokens: int
) -> dict[str, Any]:
    """Return accuracy, accuracy by likelihood per character, each with its interval, and the accuracy of guessing."""
    questions = read_questions(file, most)
    found = answer(subject, questions, make_prompts(questions, template, shots), batch_tokens)
    scores: dict[str, Any] = {"file": str(file), "questions": len(questions), "shots": len(shots)}
    for name, correct in (("accuracy", found.correct), ("accuracy_normalized", found.correct_normalized)):
        interval = wilson(int(correct.sum()), len(questions))
        scores |= {name: float(correct.mean())} | ends_of(name, interval)
    return scores | {"chance": float(np.mean([1 / len(question.choices) for question in questions]))}
