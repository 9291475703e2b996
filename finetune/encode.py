"""Encode texts with the special tokens of pretraining, and collate batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mini_llm.engine.batch import IGNORE_INDEX
from mini_llm.engine.errors import CheckpointError
from mini_llm.tokenization import framing
from mini_llm.tokenization.framing import padding_id


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of each text, with special tokens, and the number of texts truncated to `max_length`."""

    tokens: list[np.ndarray]
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.tokens], dtype=np.int64)


def encode_texts(
    tokenizer: Any, texts: Sequence[str], causal: bool, max_length: int, is_encoder_decoder: bool = False
) -> EncodedTexts:
    """Encode `texts`, truncating each at the end to `max_length` tokens including special tokens.

    The special tokens are those of mini_llm/tokenization/framing.py. No row is empty. Raises CheckpointError if the
    tokenizer lacks one that it needs, or puts no eos token after the text of an encoder-decoder.
    """
    prefix, suffix = text_frame(tokenizer, causal, is_encoder_decoder)
    room = max_length - len(prefix) - len(suffix)
    filler = [] if prefix or suffix else [padding_id(tokenizer)]
    rows, truncated = [], 0
    for ids in tokenizer.encode_batch(list(texts)):
        truncated += len(ids) > room
        row = np.concatenate([prefix, ids[:room], suffix]).astype(np.int64)
        rows.append(row if len(row) else np.array(filler, dtype=np.int64))
    return EncodedTexts(rows, truncated)


def text_frame(tokenizer: Any, causal: bool, is_encoder_decoder: bool = False) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens before and after a text. Raises CheckpointError as encode_texts does."""
    before, after = framing.text_frame(tokenizer, frame_kind(causal, is_encoder_decoder))
    if is_encoder_decoder and tokenizer.eos_id not in after:
        # The classifier reads the decoder's state at the eos token (Lewis et al. 2020).
        raise CheckpointError(
            f"{tokenizer.directory}: the tokenizer puts no eos token after a text, which the classifier of an "
            "encoder-decoder needs. Use the tokenizer that the model was pretrained with"
        )
    return before, after


def pair_frame(
    tokenizer: Any, causal: bool, is_encoder_decoder: bool = False
) -> tuple[list[int], list[int], list[int]]:
    """Return the ids of the special tokens before, between and after two texts, as AutoTokenizer adds them."""
    return framing.pair_frame(tokenizer, frame_kind(causal, is_encoder_decoder))


def frame_kind(causal: bool, is_encoder_decoder: bool) -> framing.Kind:
    """Return the kind of special tokens around a text."""
    return "seq2seq" if is_encoder_decoder else "causal" if causal else "masked"


def collate(
    tokens: list[np.ndarray], labels: list[int] | np.ndarray | None, pad_id: int, max_length: int, multiple: int = 8
) -> dict[str, torch.Tensor]:
    """Return int64 tensors `input_ids`, `attention_mask` (B, T) and `labels` (B,), padded on the right.

    T is the length of the longest row, rounded up to a multiple of `multiple` (few shapes, aligned rows), and at most
    `max_length`, the model's limit. Without `labels`, all labels are -100, which the loss ignores. Target distributions
    (B, C) stay float32. Raises ValueError for a row that is empty or longer than `max_length`.
    """
    lengths = np.array([len(row) for row in tokens])
    if lengths.min() < 1 or lengths.max() > max_length:
        raise ValueError(f"rows of {lengths.min()} to {lengths.max()} tokens: each needs 1 to {max_length}")
    width = min(-(-int(lengths.max()) // multiple) * multiple, max_length)
    attention_mask = np.arange(width) < lengths[:, None]
    input_ids = np.full((len(tokens), width), pad_id, dtype=np.int64)
    input_ids[attention_mask] = np.concatenate(tokens)
    label_ids = np.full(len(tokens), IGNORE_INDEX) if labels is None else np.asarray(labels)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)),
        "labels": torch.from_numpy(label_ids if label_ids.dtype == np.float32 else label_ids.astype(np.int64)),
    }
