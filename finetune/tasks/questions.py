"""Extractive question answering: the part of a text that answers a question (Rajpurkar et al. 2016)."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mini_llm.engine.errors import DataError

from .encoder import Encoder, Window, cut
from .metrics import answers as metric
from .objectives.answers import AnswerLoss
from .sequence import softmax
from .task import Baseline, Columns, Parts, Row, Task
from .values import group_of, text_of

LONGEST_ANSWER = 64  # tokens
OVERLAP = 128  # tokens of the text that neighbouring windows share, at most
LONGEST_QUESTION = 64  # tokens
LEAST_ROOM = 8  # tokens of the text in a window
SENTENCE = re.compile(r"[^.!?]+[.!?]*")
DIGITS = 6


class Answer(NamedTuple):
    """Characters `start` to `end` of the text; `text` is "" where there is no answer."""

    text: str
    start: int | None
    end: int | None
    score: float


class Span(NamedTuple):
    """A labelled answer: its text and its first character."""

    text: str
    start: int


class Questions(Task):
    """Windows in which the answer does not stand, and questions without answer, point at the first position.

    `impossible`: whether some training questions had no answer. Otherwise every question gets one.
    """

    name = "questions"
    head = "questions"
    metrics = ("answer_f1", "exact_match")
    objective = AnswerLoss()
    impossible = False

    @property
    def columns(self) -> Columns:
        config = self.config
        text = "context" if config.text == "text" else config.text
        return Columns(text, config.text_pair or "question", "answers" if config.label == "label" else config.label)

    @property
    def labels(self) -> list[str]:
        return []

    def settings(self) -> dict[str, Any]:
        return {"impossible": self.impossible}

    def restore(self, settings: dict[str, Any]) -> None:
        self.impossible = bool(settings.get("impossible", False))

    def parse(self, values: dict[str, Any], place: str) -> Row | str:
        text_column, question_column, answers_column = self.columns
        text, question = text_of(values, text_column, place), text_of(values, str(question_column), place)
        if text is None or question is None:
            return text_column if text is None else str(question_column)
        answers = spans(values.get(answers_column), text, f"{place}: '{answers_column}'")
        if answers is None:
            return answers_column
        # Questions about one text stay together.
        return Row(place, text, answers, question, group=group_of(values, self.config) or text)

    def fit(self, rows: Sequence[Row], path: str) -> list[str]:
        without = sum(not row.target for row in rows)
        if without == len(rows):
            raise DataError(f"{path}: no question has an answer, so there is nothing to learn")
        self.impossible = without > 0
        return [f"{without:,} of {len(rows):,} questions have no answer"] if without else []

    def windows(self, rows: Sequence[Row], encoder: Encoder) -> list[Window]:
        questions = encoder.tokenizer.encode_batch([row.pair or "" for row in rows])
        texts = list(dict.fromkeys(row.text for row in rows))
        encoded = {
            text: (ids, trimmed(characters, text))
            for text, (ids, characters) in zip(texts, encoder.tokenizer.encode_spans(texts), strict=True)
        }
        windows = []
        for index, (row, question) in enumerate(zip(rows, questions, strict=True)):
            ids, characters = encoded[row.text]
            question = question[:LONGEST_QUESTION]
            before, between, after = encoder.pair_frame
            offset = len(before) + len(question) + len(between)
            room = encoder.max_length - offset - len(after)
            if room < LEAST_ROOM:
                raise DataError(
                    f"{row.place}: with a question of {len(question)} tokens, {room} of {encoder.max_length} are left "
                    "for the text. Raise data.max_length, or use a model that reads more"
                )
            for first, last, _, _ in cut([1] * len(ids), room, min(OVERLAP, room // 2)):
                tokens, types = encoder.joined(question, ids[first:last])
                part = characters[first:last]
                labels = None if row.target is None else self._label(row, part, offset)
                windows.append(Window(index, tokens, types, labels, {0: slice(offset, offset + len(part))}, part))
        return windows

    @staticmethod
    def _label(row: Row, part: np.ndarray, offset: int) -> np.ndarray:
        """Return the positions of the first and the last token of the first answer, or (0, 0) if it is elsewhere."""
        if row.target and len(part):
            start, end = row.target[0].start, row.target[0].start + len(row.target[0].text)
            inside = (part[:, 1] > start) & (part[:, 0] < end) & (part[:, 1] > part[:, 0])
            tokens = inside.nonzero()[0]
            if len(tokens) and part[tokens[0], 0] <= start and part[tokens[-1], 1] >= end:
                return offset + tokens[[0, -1]].astype(np.int64)
        return np.zeros(2, dtype=np.int64)

    def decode(self, rows: Sequence[Row], windows: Sequence[Window], logits: Sequence[np.ndarray]) -> list[Any]:
        best = [(-np.inf, Answer("", None, None, 0.0))] * len(rows)
        for window, found in zip(windows, logits, strict=True):
            place = window.places[0]
            if place.stop == place.start:
                continue
            starts, ends = found[place].astype(np.float64).T
            first, last = best_span(starts, ends)
            # Window by window against "not here", since logits of different windows are not on one scale.
            margin = starts[first] + ends[last] - float(found[0].sum())
            if margin <= best[window.row][0]:
                continue
            kept = np.concatenate([found[:1], found[place]])
            score = float(softmax(kept.T)[[0, 1], [first + 1, last + 1]].prod())
            text, start, end = rows[window.row].text, int(window.spans[first, 0]), int(window.spans[last, 1])
            best[window.row] = margin, Answer(text[start:end], start, end, score)
        return [
            Answer("", None, None, 1 - answer.score) if self.impossible and margin < 0 else answer
            for margin, answer in best
        ]

    def statistics(self, rows: Sequence[Row], predictions: Sequence[Any]) -> np.ndarray:
        return metric.statistics(
            [[span.text for span in row.target] for row in rows], [answer.text for answer in predictions]
        )

    def scores(self, means: np.ndarray) -> dict[str, np.ndarray]:
        return metric.scores(means)

    def baselines(self, parts: Parts, seed: int) -> list[Baseline]:
        """The sentence that shares most words with the question; no answer, where some questions have none."""
        scored = parts.scored[1]
        found = [Baseline("sentence nearest to the question", [nearest_sentence(row) for row in scored])]
        if self.impossible:
            found.append(Baseline("no answer", [Answer("", None, None, 1.0)] * len(scored)))
        return found

    def wrong(self, row: Row, prediction: Any) -> tuple[str, str] | None:
        if metric.statistics([[span.text for span in row.target]], [prediction.text])[0, 0]:
            return None
        return " | ".join(span.text for span in row.target), prediction.text

    def output(self, row: Row, prediction: Any) -> dict[str, Any]:
        text, start, end, score = prediction
        return {"answer": text, "start": start, "end": end, "score": round(score, DIGITS)}

    def outputs(self) -> list[str]:
        return ["answer", "start", "end", "score"]


def spans(value: Any, text: str, place: str) -> tuple[Span, ...] | None:
    """Return the answers of a row, none for a question without answer; None for null.

    Reads a list of {"text", "answer_start"} (SQuAD), or {"text": [...], "answer_start": [...]} (datasets). Raises
    DataError for answers that do not stand where they say.
    """
    if value is None or value != value or value == "":
        return None
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("answer_start"), list):
        texts, starts = value["text"], value["answer_start"]
        if len(texts) != len(starts):
            raise DataError(f"{place}: {len(texts)} texts, but {len(starts)} values of answer_start")
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list) and all(isinstance(part, dict) for part in value):
        pairs = [(part.get("text"), part.get("answer_start")) for part in value]
    else:
        raise DataError(
            f'{place}: {str(value)[:60]!a} is not a list of answers such as {{"text": "1815", "answer_start": 12}}, '
            "which JSONL, Parquet and SQuAD's JSON hold"
        )
    found = []
    for answer, start in pairs:
        if not isinstance(answer, str) or not answer.strip() or type(start) is not int:
            raise DataError(
                f"{place}: an answer needs a text and the number of its first character, found {answer!a}, {start!a}"
            )
        if not 0 <= start <= len(text) - len(answer):
            raise DataError(
                f"{place}: the answer {answer[:60]!a} at character {start} is outside the text, which has {len(text)} "
                "characters"
            )
        if text[start : start + len(answer)] != answer:
            raise DataError(
                f"{place}: the text has {text[start : start + len(answer)][:60]!a} at character {start}, not the "
                f"answer {answer[:60]!a}. answer_start counts characters from 0"
            )
        found.append(Span(answer, start))
    return tuple(found)


def trimmed(characters: np.ndarray, text: str) -> np.ndarray:
    """Return the spans of tokens (N, 2) without the white space that they begin with."""
    characters = characters.copy()
    for span in characters:
        while span[0] < span[1] and text[span[0]].isspace():
            span[0] += 1
    return characters


def best_span(starts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """Return (first, last) with the greatest sum, first <= last and at most LONGEST_ANSWER tokens."""
    distance = np.arange(len(ends)) - np.arange(len(starts))[:, None]
    sums = np.where((distance >= 0) & (distance < LONGEST_ANSWER), starts[:, None] + ends, -np.inf)
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(first), int(last)


def nearest_sentence(row: Row) -> Answer:
    """Return the sentence of the text that holds most different words of the question, the first of several."""
    words = set(metric.normalized(row.pair or "").split())
    sentences = list(SENTENCE.finditer(row.text))
    if not sentences:
        return Answer(row.text, 0, len(row.text), 1.0)
    best = max(sentences, key=lambda found: len(words & set(metric.normalized(found[0]).split())))
    return Answer(best[0].strip(), best.start(), best.end(), 1.0)
