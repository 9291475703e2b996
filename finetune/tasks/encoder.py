"""Texts, pairs and windows of long texts as token ids, with the special tokens that AutoTokenizer adds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mini_llm.engine.batch import IGNORE_INDEX
from mini_llm.model import ModelConfig

from ..encode import padding_id, pair_frame, text_frame


@dataclass
class Window:
    """Token ids of one row, or of a part of a long one.

    row: its index. types: 1 for tokens of the second text, None for a model without token types. labels: one label, or
    one per token. places: where the words of the row stand among `tokens`; where windows overlap, a word has its place
    in the one with the most context of it. For questions, places[0] is the place of the text, and `spans` (tokens, 2)
    are the characters of its tokens.
    """

    row: int
    tokens: np.ndarray
    types: np.ndarray | None = None
    labels: Any = None
    places: dict[int, slice] = field(default_factory=dict)
    spans: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))


class Encoder:
    """Encodes texts for one model. `truncated` counts the texts of which only the beginning is read."""

    def __init__(self, tokenizer: Any, config: ModelConfig, max_length: int) -> None:
        self.tokenizer, self.config, self.max_length = tokenizer, config, max_length
        self.pad = padding_id(tokenizer)
        self.truncated = 0
        self._known: dict[str, np.ndarray] = {}

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids before and after a text."""
        return text_frame(self.tokenizer, self.config.causal, self.config.is_encoder_decoder)

    @cached_property
    def pair_frame(self) -> tuple[list[int], list[int], list[int]]:
        """The ids before, between and after two texts."""
        return pair_frame(self.tokenizer, self.config.causal, self.config.is_encoder_decoder)

    def text(self, ids: np.ndarray) -> np.ndarray:
        """Return the ids of a text with special tokens, truncated; never empty."""
        before, after = self.frame
        room = self.max_length - len(before) - len(after)
        self.truncated += len(ids) > room
        row = np.concatenate([before, ids[:room], after]).astype(np.int64)
        return row if len(row) else np.array([self.pad])

    def pair(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the ids of two texts and their token types.

        Truncates as the tokenizers library does ("longest_first"): the longer text first, then both alike.
        """
        room = self.max_length - sum(map(len, self.pair_frame))
        lengths = sorted((len(first), len(second)))
        if sum(lengths) > room:
            self.truncated += 1
            shorter = min(lengths[0], room // 2)
            limits = (shorter, room - shorter) if len(first) <= len(second) else (room - shorter, shorter)
            first, second = first[: limits[0]], second[: limits[1]]
        return self.joined(first, second)

    def joined(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the ids of two texts and their token types, not truncated."""
        before, between, after = self.pair_frame
        ids = np.concatenate([before, first, between, second, after]).astype(np.int64)
        if self.config.type_vocab_size < 2:
            return ids, None
        types = np.zeros(len(ids), dtype=np.int64)
        types[len(ids) - len(second) - len(after) :] = 1
        return ids, types

    def words(self, words: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each of the words of a text, which spaces separate.

        Each is encoded by itself, so that no token belongs to two words.
        """
        spaced = [word if i == 0 else self._space + word for i, word in enumerate(words)]
        new = list(dict.fromkeys(word for word in spaced if word not in self._known))
        self._known.update(zip(new, self.tokenizer.encode_batch(new), strict=True))
        return [self._known[word] for word in spaced]

    @cached_property
    def _space(self) -> str:
        """What precedes a word: nothing for a tokenizer that puts a space before every text itself."""
        alone, both = self.tokenizer.encode("a"), self.tokenizer.encode("a a")
        return "" if list(both) == [*alone, *alone] else " "


def cut(lengths: Sequence[int], room: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut items of `lengths` tokens into overlapping windows of at most `room` tokens, or of one item.

    Yields (first, last, own_first, own_last): the items in the window, and those of which it has the most context; the
    latter of all windows are all items, each once. Neighbouring windows share about `overlap` tokens.
    """
    ends = np.cumsum(lengths)
    count, first, own = len(lengths), 0, 0
    while True:
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + room, side="right")), first + 1)
        if last >= count:
            yield first, count, own, count
            return
        following = max(int(np.searchsorted(ends, ends[last - 1] - overlap, side="left")) + 1, first + 1)
        following = min(following, last)
        middle = max((following + last) // 2, own)
        yield first, last, own, middle
        first, own = following, middle


def collate(
    windows: Sequence[Window], pad: int, max_length: int, by_token: bool = False, multiple: int = 8
) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask`, `labels`, and `token_type_ids` if the windows have types, padded right.

    by_token: whether there is one label per token. The width is that of the longest window, rounded up to a multiple of
    `multiple` and at most `max_length`.
    """
    lengths = np.array([len(window.tokens) for window in windows])
    width = min(-(-int(lengths.max()) // multiple) * multiple, max_length)
    mask = np.arange(width) < lengths[:, None]
    batch = {"input_ids": _filled(mask, [w.tokens for w in windows], pad), "attention_mask": mask.astype(np.int64)}
    if windows[0].types is not None:
        batch["token_type_ids"] = _filled(mask, [w.types for w in windows], 0)
    labels = [window.labels for window in windows]
    if labels[0] is None:
        batch["labels"] = np.full(len(windows), IGNORE_INDEX)
    elif by_token:
        batch["labels"] = _filled(mask, labels, IGNORE_INDEX)
    else:
        batch["labels"] = np.stack(labels)
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _filled(mask: np.ndarray, rows: Sequence[Any], filler: int) -> np.ndarray:
    result = np.full(mask.shape, filler, dtype=np.int64)
    result[mask] = np.concatenate(rows)
    return result
