"""Token classification: named entities in BIO tags (Ramshaw and Marcus 1995)."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mini_llm.engine.batch import IGNORE_INDEX
from mini_llm.engine.errors import DataError

from ..quality.labels import label_names
from .encoder import Encoder, Window, cut
from .metrics import entities as metric
from .metrics.entities import entities, repaired
from .sequence import check_known, softmax
from .task import Baseline, Columns, Parts, Row, Task
from .values import group_of, string_list, text_of

OUTSIDE = "O"
# Words of a text that is not cut into words yet: letters and digits, or one other sign.
WORD = re.compile(r"\w+|[^\w\s]")
DIGITS = 6


class Tags(NamedTuple):
    """The predicted tag of each word of a row, and its probability."""

    tags: list[str]
    probabilities: list[float]


class Tokens(Task):
    name = "tokens"
    head = "tokens"
    metrics = ("entity_f1", "entity_precision", "entity_recall", "word_accuracy")

    @property
    def columns(self) -> Columns:
        config = self.config
        text = "tokens" if config.text == "text" else config.text
        return Columns(text, None, "tags" if config.label == "label" else config.label)

    @property
    def input_column(self) -> str:
        return self.config.text

    def parse(self, values: dict[str, Any], place: str) -> Row | str:
        words_column, _, tags_column = self.columns
        words = string_list(values.get(words_column), f"{place}: '{words_column}'")
        tags = string_list(values.get(tags_column), f"{place}: '{tags_column}'")
        if words is None or tags is None:
            return words_column if words is None else tags_column
        if len(words) != len(tags):
            raise DataError(f"{place}: {len(words)} words, but {len(tags)} tags: each word needs one")
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        spans = tuple((int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True))
        tags = self._checked(words, tags, place)
        return Row(place, " ".join(words), tags, words=spans, group=group_of(values, self.config))

    def _checked(self, words: list[str], tags: list[str], place: str) -> list[str]:
        """Return valid BIO tags. Raises DataError for others, unless data.broken_tags = repair mends them."""
        for index, tag in enumerate(tags):
            if tag != OUTSIDE and not re.fullmatch(r"[BI]-.+", tag):
                raise DataError(
                    f"{place}: the tag {tag!a} of word {index + 1} ({words[index]!a}) is not BIO. Tags are O, or "
                    "B-TYPE for the first word of an entity and I-TYPE for the others; convert other schemes (in "
                    "BIOES, E- is I- and S- is B-)"
                )
        valid = repaired(tags)
        if valid != tags and self.config.broken_tags == "stop":
            index = next(i for i, (a, b) in enumerate(zip(valid, tags, strict=True)) if a != b)
            raise DataError(
                f"{place}: word {index + 1} ({words[index]!a}) is {tags[index]} after "
                f"{tags[index - 1] if index else 'the beginning'}, but no entity of this type began. Write "
                f"{valid[index]}, or set data.broken_tags=repair, which does so everywhere (IOB1 files need it)"
            )
        return valid

    def fit(self, rows: Sequence[Row], path: str) -> list[str]:
        kinds = label_names({tag[2:] for row in rows for tag in row.target if tag != OUTSIDE})
        if not kinds:
            raise DataError(f"{path}: all words have the tag O, so there is no entity to learn")
        self.names = [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
        words = sum(len(row.words) for row in rows)
        counts = Counter(entity.kind for row in rows for entity in entities(row.target))
        shown = ", ".join(f"{kind} {counts[kind]:,}" for kind in kinds)
        return [f"{words:,} words; entities: {shown}"]

    @property
    def kinds(self) -> list[str]:
        return [name[2:] for name in self.names if name.startswith("B-")]

    def check(self, rows: Sequence[Row], path: str, train: str) -> None:
        check_known(self.names, [(row.place, row.target) for row in rows], path, train)

    def windows(self, rows: Sequence[Row], encoder: Encoder) -> list[Window]:
        before, after = encoder.frame
        room = encoder.max_length - len(before) - len(after)
        windows = []
        for index, row in enumerate(rows):
            words = [ids[:room] for ids in encoder.words([row.text[a:b] for a, b in row.words])]
            for first, last, own_first, own_last in cut([len(ids) for ids in words], room, room // 4):
                tokens = np.concatenate([before, *words[first:last], after]).astype(np.int64)
                starts = len(before) + np.cumsum([0, *map(len, words[first:last])])
                # A word without tokens (only signs that the tokenizer drops) is never read, so that it stays outside.
                places = {
                    word: slice(*starts[word - first : word - first + 2].tolist())
                    for word in range(own_first, own_last)
                    if len(words[word])
                }
                labels = None if row.target is None else self._labels(len(tokens), places, row.target)
                windows.append(Window(index, tokens, labels=labels, places=places))
        return windows

    def _labels(self, length: int, places: dict[int, slice], tags: Sequence[str]) -> np.ndarray:
        """Return one label per token: the first token of a word has its tag, the others continue its entity."""
        labels = np.full(length, IGNORE_INDEX, dtype=np.int64)
        for word, place in places.items():
            tag = tags[word]
            labels[place] = self._ids[tag if tag == OUTSIDE else f"I-{tag[2:]}"]
            labels[place.start] = self._ids[tag]
        return labels

    @property
    def _ids(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def decode(self, rows: Sequence[Row], windows: Sequence[Window], logits: Sequence[np.ndarray]) -> list[Any]:
        found = [Tags([OUTSIDE] * len(row.words), [1.0] * len(row.words)) for row in rows]
        for window, scores in zip(windows, logits, strict=True):
            probabilities = softmax(scores)
            tags, values = found[window.row]
            for word, place in window.places.items():
                best = int(probabilities[place.start].argmax())
                tags[word], values[word] = self.names[best], float(probabilities[place.start, best])
        return found

    def statistics(self, rows: Sequence[Row], predictions: Sequence[Any]) -> np.ndarray:
        return metric.statistics([row.target for row in rows], [found.tags for found in predictions], self.kinds)

    def scores(self, means: np.ndarray) -> dict[str, np.ndarray]:
        return metric.scores(means)

    def baselines(self, parts: Parts, seed: int) -> list[Baseline]:
        """The most frequent tag of each word in training; O for other words."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in parts.train:
            for (start, end), tag in zip(row.words, row.target, strict=True):
                counts[row.text[start:end]][tag] += 1
        common = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
        predictions = []
        for row in parts.scored[1]:
            tags = repaired([common.get(row.text[start:end], OUTSIDE) for start, end in row.words])
            predictions.append(Tags(tags, [1.0] * len(tags)))
        return [Baseline("most frequent tag of each word", predictions)]

    def unlabelled(self, values: dict[str, Any], place: str) -> Row | None:
        """Return a row of a text, whose words are found here."""
        text = text_of(values, self.columns.text, place)
        return None if text is None else Row(place, text, words=tuple(match.span() for match in WORD.finditer(text)))

    def wrong(self, row: Row, prediction: Any) -> tuple[str, str] | None:
        truth, found = (
            [f"{e.kind} {row.text[row.words[e.first][0] : row.words[e.last][1]]}" for e in entities(tags)]
            for tags in (row.target, prediction.tags)
        )
        return None if truth == found else ("; ".join(truth), "; ".join(found))

    def output(self, row: Row, prediction: Any) -> dict[str, Any]:
        """The entities with their characters from and to in the text; score: mean probability of their words' tags."""
        found = []
        for kind, first, last in entities(prediction.tags):
            start, end = row.words[first][0], row.words[last][1]
            score = round(float(np.mean(prediction.probabilities[first : last + 1])), DIGITS)
            found.append({"type": kind, "text": row.text[start:end], "start": start, "end": end, "score": score})
        return {"entities": found}

    def outputs(self) -> list[str]:
        return ["entities"]
